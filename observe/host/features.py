# SPDX-License-Identifier: Apache-2.0
"""The checks of a host. Features are probed, versions are not compared; roots are passed in, for tests."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from observe.errors import HostCannotError
from observe.host import kernel

_PROC = Path("/proc")
_SYS = Path("/sys")
_USR = Path("/usr")

#: Capabilities by bit, as far as recording needs them.
_DAC_OVERRIDE, _DAC_READ_SEARCH, _SYS_PTRACE, _SYS_ADMIN, _PERFMON, _BPF = 1, 2, 19, 21, 38, 39

#: PROC_PID_INIT_INO: what /proc/self/ns/pid shows in the host's own pid namespace.
_HOST_PID_NAMESPACE = "pid:[4026531836]"

_EVENTS = ("raw_syscalls/sys_enter", "syscalls/sys_enter_mount", "sched/sched_process_fork")
_EVENTS_OF_SCHED = ("sched/sched_process_exec", "sched/sched_process_exit")

#: What watching an engine's data root takes: a tree of some thousand layers, a burst of a few creates.
_INOTIFY_NEEDS = {"max_queued_events": 16384, "max_user_instances": 128, "max_user_watches": 65536}

_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a host has or lacks. Without a `needed` one nothing can be recorded."""

    name: str
    ok: bool
    needed: bool
    #: What was found, for people.
    found: str
    #: What to do about it; "" if there is nothing to do.
    remedy: str = ""


def checks() -> tuple[Check, ...]:
    """All checks of this host, the ones that explain others first."""
    return (
        architecture(platform.machine()),
        capabilities(),
        pid_namespace(),
        bpf_feature("ring buffer", kernel.ring_buffer()),
        bpf_feature("tracepoint programs", kernel.tracepoint_program()),
        bpf_feature("boot clock", kernel.boot_clock()),
        bpf_feature("uprobe links", kernel.uprobe_multi(), needed=False),
        tracefs(),
        bcc(),
        uapi_headers(platform.machine()),
        inotify(),
    )


def require(found: Iterable[Check]) -> None:
    """Raise HostCannotError with one line for each needed thing that is missing; otherwise nothing."""
    missing = [check for check in found if check.needed and not check.ok]
    if missing:
        raise HostCannotError(*(f"{check.name}: {check.found}: {check.remedy}" for check in missing))


def architecture(machine: str) -> Check:
    """Whether the programs were made for this kind of processor."""
    if machine == "x86_64":
        return Check("architecture", ok=True, needed=True, found="x86_64")
    if machine == "aarch64":
        return Check("architecture", ok=True, needed=True, found="aarch64 (untested)")
    return Check("architecture", ok=False, needed=True, found=machine, remedy="record on x86_64 or aarch64")


def capabilities(proc: Path = _PROC) -> Check:
    """Whether this process may load programs and look at other processes."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", (proc / "self" / "status").read_text(), re.MULTILINE)
    held = int(match.group(1), 16) if match else 0

    def has(bit: int) -> bool:
        return bool(held >> bit & 1)

    missing = []
    if not has(_SYS_ADMIN):
        missing += [name for name, bit in (("CAP_BPF", _BPF), ("CAP_PERFMON", _PERFMON)) if not has(bit)]
    if not has(_SYS_PTRACE):
        missing.append("CAP_SYS_PTRACE")
    if not (has(_DAC_READ_SEARCH) or has(_DAC_OVERRIDE)):
        missing.append("CAP_DAC_READ_SEARCH")
    return Check(
        "capabilities",
        ok=not missing,
        needed=True,
        found=f"missing {', '.join(missing)}" if missing else "all that is needed",
        remedy="run as root (sudo); in a container: --privileged" if missing else "",
    )


def pid_namespace(proc: Path = _PROC) -> Check:
    """Whether process ids here are those the kernel reports."""
    found = str((proc / "self" / "ns" / "pid").readlink())
    host = found == _HOST_PID_NAMESPACE
    return Check(
        "pid namespace",
        ok=host,
        needed=True,
        found="the host's" if host else f"{found}, not the host's",
        remedy="" if host else "run on the host, or with hostPID (docker run --pid=host)",
    )


def bpf_feature(name: str, refused: OSError | None, *, needed: bool = True) -> Check:
    """What the kernel's answer to a probe of `observe.host.kernel` means; `refused` is None if the feature is there."""
    if refused is None:
        return Check(name, ok=True, needed=needed, found="works")
    if refused.errno in (errno.EPERM, errno.EACCES):
        remedy = "run as root; in a container: --privileged; before Linux 5.11 also: ulimit -l unlimited"
    elif not needed:
        remedy = "functions are traced with slower links; Linux 6.6 or later has fast ones"
    else:
        remedy = (
            "use Linux 5.8 or later with CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS, without lockdown=confidentiality"
        )
    return Check(name, ok=False, needed=needed, found=refused.strerror or str(refused), remedy=remedy)


def tracefs(sys_root: Path = _SYS) -> Check:
    """Whether the descriptions of the tracepoints can be read, at one of the two places where bcc looks."""
    places = [sys_root / "kernel" / "debug" / "tracing", sys_root / "kernel" / "tracing"]
    for place in places:
        events = place / "events"
        try:
            if not (events / "sched").is_dir():
                continue
            lacking = [name for name in (*_EVENTS, *_EVENTS_OF_SCHED) if not _readable(events / name / "format")]
        except PermissionError:
            return Check("tracefs", ok=False, needed=True, found=f"{place} is not readable", remedy="run as root")
        if lacking:
            found = f"{place} lacks {', '.join(lacking)}"
            remedy = "use a kernel with CONFIG_FTRACE_SYSCALLS (all distributions have it)"
            return Check("tracefs", ok=False, needed=True, found=found, remedy=remedy)
        return Check("tracefs", ok=True, needed=True, found=str(place))
    remedy = "mount -t tracefs tracefs /sys/kernel/tracing"
    return Check("tracefs", ok=False, needed=True, found="not mounted", remedy=remedy)


def bcc(find: Callable[[str], str | None] | None = None) -> Check:
    """Whether `import bcc` gives the BPF Compiler Collection, and not PyPI's crystal lattices of the same name."""
    origin = (find or _origin)("bcc")
    package = "apt-get install --no-install-recommends python3-bpfcc"
    venv = "/usr/bin/python3 -m venv --system-site-packages"
    if origin is None:
        distribution = Path("/usr/lib/python3/dist-packages/bcc/libbcc.py")
        remedy = f"make the venv with {venv}" if distribution.exists() else f"{package} (and a venv made with {venv})"
        return Check("bcc", ok=False, needed=True, found=f"not importable by {sys.executable}", remedy=remedy)
    folder = Path(origin).parent
    if not (folder / "libbcc.py").exists():
        found = f"{folder} is PyPI's bcc, an unrelated package"
        return Check("bcc", ok=False, needed=True, found=found, remedy=f"pip uninstall bcc; {package}")
    version = re.search(r"'(.+)'", _text(folder / "version.py"))
    return Check("bcc", ok=True, needed=True, found=f"{version.group(1) if version else 'version unknown'} in {folder}")


def uapi_headers(machine: str, usr: Path = _USR) -> Check:
    """Whether the kernel's user-space headers are installed (those of the running kernel are not needed)."""
    include = usr / "include"
    triplet = _TRIPLETS.get(machine, "")
    ok = (include / "linux" / "bpf.h").exists() and (
        (include / triplet / "asm" / "types.h").exists() or (include / "asm" / "types.h").exists()
    )
    found = str(include / "linux") if ok else f"no linux/bpf.h and asm/types.h in {include}"
    return Check("uapi headers", ok=ok, needed=True, found=found, remedy="" if ok else "apt-get install linux-libc-dev")


def inotify(proc: Path = _PROC) -> Check:
    """Whether the limits of inotify leave room for a data root. Recording works without: system calls tell more."""
    folder = proc / "sys" / "fs" / "inotify"
    limits = {name: int(_text(folder / name) or 0) for name in _INOTIFY_NEEDS}
    low = [name for name, needs in _INOTIFY_NEEDS.items() if limits[name] < needs]
    found = "queue {max_queued_events}, instances {max_user_instances}, watches {max_user_watches}".format(**limits)
    remedy = "sysctl -w " + " ".join(f"fs.inotify.{name}={_INOTIFY_NEEDS[name]}" for name in low) if low else ""
    return Check("inotify", ok=not low, needed=False, found=found, remedy=remedy)


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK, effective_ids=True)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return spec.origin if spec is not None else None
