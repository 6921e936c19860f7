# SPDX-License-Identifier: Apache-2.0
"""The checks of a host, on made-up hosts."""

import argparse
import errno
import os
import struct
from pathlib import Path

import pytest

from observe import host
from observe.commands import doctor
from observe.errors import HostCannotError
from observe.host import features, kernel
from observe.probes import sched


def status(tmp_path, *bits):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(f"Name:\tx\nCapEff:\t{sum(1 << bit for bit in bits):016x}\nSeccomp:\t0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("bits", "missing"),
    [
        ((2, 19, 21), []),
        ((1, 19, 38, 39), []),
        ((2, 19, 39), ["CAP_PERFMON"]),
        ((21,), ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]),
        ((), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]),
    ],
)
def test_capabilities(tmp_path, bits, missing):
    found = features.capabilities(status(tmp_path, *bits))
    assert found.ok == (not missing)
    assert [word.strip(",") for word in found.found.split() if word.startswith("CAP_")] == missing
    assert bool(found.remedy) == bool(missing)


def test_pid_namespace(tmp_path):
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").symlink_to("pid:[4026531836]")
    assert features.pid_namespace(tmp_path).ok
    (tmp_path / "self" / "ns" / "pid").unlink()
    (tmp_path / "self" / "ns" / "pid").symlink_to("pid:[4026532000]")
    assert "hostPID" in features.pid_namespace(tmp_path).remedy


def test_tracefs(tmp_path):
    assert features.tracefs(tmp_path).remedy == "mount -t tracefs tracefs /sys/kernel/tracing"
    events = tmp_path / "kernel" / "tracing" / "events"
    for name in ("raw_syscalls/sys_enter", "sched/sched_process_fork", "sched/sched_process_exec"):
        (events / name).mkdir(parents=True)
        (events / name / "format").touch()
    found = features.tracefs(tmp_path)
    assert not found.ok
    assert "syscalls/sys_enter_mount, sched/sched_process_exit" in found.found
    for name in ("syscalls/sys_enter_mount", "sched/sched_process_exit"):
        (events / name).mkdir(parents=True)
        (events / name / "format").touch()
    assert features.tracefs(tmp_path) == host.Check("tracefs", ok=True, needed=True, found=str(events.parent))


def test_the_right_bcc_and_the_impostor(tmp_path):
    (tmp_path / "__init__.py").touch()
    impostor = features.bcc(lambda _name: str(tmp_path / "__init__.py"))
    assert not impostor.ok
    assert "unrelated" in impostor.found
    assert "python3-bpfcc" in impostor.remedy
    (tmp_path / "libbcc.py").touch()
    (tmp_path / "version.py").write_text("__version__ = '0.99'\n")
    real = features.bcc(lambda _name: str(tmp_path / "__init__.py"))
    assert real.ok
    assert real.found.startswith("0.99 ")
    absent = features.bcc(lambda _name: None)
    assert not absent.ok
    assert "--system-site-packages" in absent.remedy


def test_uapi_headers(tmp_path):
    assert features.uapi_headers("x86_64", tmp_path).remedy == "apt-get install linux-libc-dev"
    include = tmp_path / "include"
    (include / "linux").mkdir(parents=True)
    (include / "linux" / "bpf.h").touch()
    assert not features.uapi_headers("x86_64", tmp_path).ok
    (include / "x86_64-linux-gnu" / "asm").mkdir(parents=True)
    (include / "x86_64-linux-gnu" / "asm" / "types.h").touch()
    assert features.uapi_headers("x86_64", tmp_path).ok
    assert not features.uapi_headers("aarch64", tmp_path).ok


def test_inotify_limits(tmp_path):
    folder = tmp_path / "sys" / "fs" / "inotify"
    folder.mkdir(parents=True)
    for name, value in (("max_queued_events", 16384), ("max_user_instances", 128), ("max_user_watches", 8192)):
        (folder / name).write_text(f"{value}\n")
    found = features.inotify(tmp_path)
    assert (found.ok, found.needed) == (False, False)
    assert found.found == "queue 16384, instances 128, watches 8192"
    assert found.remedy == "sysctl -w fs.inotify.max_user_watches=65536"


def test_architectures():
    assert [features.architecture(name).ok for name in ("x86_64", "aarch64", "riscv64")] == [True, True, False]


def refuse(number):
    def call(_command, _attributes):
        raise OSError(number, os.strerror(number))

    return call


PROBES = (kernel.ring_buffer, kernel.tracepoint_program, kernel.boot_clock, kernel.uprobe_multi)


@pytest.mark.parametrize("probe", PROBES)
def test_a_kernel_that_refuses(probe):
    refused = probe(refuse(errno.EPERM))
    assert refused.errno == errno.EPERM
    assert "root" in features.bpf_feature("x", refused).remedy
    assert "5.8" in features.bpf_feature("x", probe(refuse(errno.EINVAL))).remedy
    assert features.bpf_feature("x", None).ok


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_stays_open_after_a_probe(probe):
    opened = []

    def call(_command, _attributes):
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[-1]

    before = open_descriptors()
    assert probe(call) is None
    assert opened
    assert open_descriptors() == before


def open_descriptors():
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(("number", "supported"), [(errno.EBADF, True), (errno.EINVAL, False)])
def test_uprobe_links_are_there_if_the_kernel_gets_as_far_as_the_file(number, supported):
    commands = []

    def call(command, attributes):
        commands.append(command)
        if command == 5:
            assert struct.unpack_from("=I", attributes, 68) == (48,)  # expected_attach_type
            return os.open(os.devnull, os.O_RDONLY)
        raise OSError(number, os.strerror(number))

    assert (kernel.uprobe_multi(call) is None) == supported
    assert commands == [5, 28]


GOOD = host.Check("good", ok=True, needed=True, found="here")
NICE = host.Check("nice", ok=False, needed=False, found="low", remedy="raise it")
BAD = host.Check("bad", ok=False, needed=True, found="gone", remedy="mount it")
WORSE = host.Check("worse", ok=False, needed=True, found="broken", remedy="mend it")


def test_require_says_one_line_for_each_thing_that_is_missing_and_needed():
    host.require([GOOD, NICE])
    with pytest.raises(HostCannotError) as raised:
        host.require([GOOD, BAD, NICE, WORSE])
    assert str(raised.value).split("\n") == ["bad: gone: mount it", "worse: broken: mend it"]
    assert raised.value.exit_code == 3


def test_doctor_lines_are_aligned_and_say_what_to_do():
    found = doctor.Diagnosis((GOOD, NICE, BAD), None, 7, 5)
    told = list(doctor.lines(found, ("ok", "MISSING", "-")))
    assert told == [
        "ok       good    here",
        "-        nice    low",
        "                 do: raise it",
        "MISSING  bad     gone",
        "                 do: mount it",
        "ok       phases  7 documented, 5 with kernel evidence",
        "",
        "recording is not possible: see above",
    ]
    assert found.as_json()["can_record"] is False
    assert doctor.Diagnosis((GOOD, NICE), None, 7, 5).can_record


@pytest.mark.parametrize(("check", "code"), [(GOOD, 0), (NICE, 0), (BAD, 3)])
def test_doctor_exit_code(monkeypatch, capsys, check, code):
    monkeypatch.setattr(doctor, "diagnose", lambda _docker_host: doctor.Diagnosis((check,), None, 1, 1))
    assert doctor.run(argparse.Namespace(json=True, docker_host=None)) == code
    assert check.name in capsys.readouterr().out


def why_host(folder, tracepoints):
    for name in tracepoints:
        (folder / "any" / name).mkdir(parents=True)
    (folder / "btf").write_bytes(b"type information")
    return doctor.why_check(folder / "btf", folder)


def test_what_the_reasons_need_is_there_or_named(tmp_path, monkeypatch):
    absent = doctor.why_check(tmp_path / "btf", tmp_path)
    assert (absent.ok, absent.needed) == (False, False)
    assert "CONFIG_DEBUG_INFO_BTF" in absent.remedy
    assert "cannot be read" in why_host(tmp_path / "no", ["x"]).found
    monkeypatch.setattr(doctor.sched, "kernel_offsets", lambda _btf: {})
    whole = [*sched.RAW_TRACEPOINTS, *sched.OPTIONAL_RAW_TRACEPOINTS]
    assert why_host(tmp_path / "whole", whole).ok
    less = why_host(tmp_path / "less", sched.RAW_TRACEPOINTS)
    assert less.ok
    assert "without sock_send_length" in less.found
    lacking = why_host(tmp_path / "lacking", whole[1:])
    assert (lacking.ok, lacking.found) == (False, "the kernel has no tracepoint irq_handler_entry")
