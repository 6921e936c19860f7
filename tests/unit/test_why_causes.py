# SPDX-License-Identifier: Apache-2.0
"""Causes are data: recognised as the catalogue says, in its words; and what nobody wrote down is named all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from observe.correlate.why.causes import causes_of, file_name
from observe.errors import ObserveError
from observe.model import PathStep
from observe.phases import load
from observe.phases.causes import Sleep, load_causes, parse_causes

STEP = PathStep(0, 10, "blocked", "disk", "start", "dockerd", 1, 11)
HOOK = "start.containerd_start.runc_create.network_hook"
SECCOMP = "start.containerd_start.runc_create.init.seccomp"
VERSION = "20.10.24+dfsg1"


@pytest.mark.parametrize(
    ("call", "filesystem", "stack", "reason"),
    [
        # Where threads of a real engine slept (Linux 6.18).
        (
            "sendto",
            "sockfs",
            "wait_for_completion;rcu_barrier;__dev_change_net_namespace;do_setlink.isra.0;rtnl_setlink",
            "rcu",
        ),
        ("write", "cgroup", "wait_for_completion;synchronize_rcu_normal;rcu_sync_enter;percpu_down_write", "rcu"),
        ("mount", "", "synchronize_rcu_expedited;namespace_unlock;path_mount;__x64_sys_mount", "rcu"),
        (
            "fdatasync",
            "ext4",
            "wait_for_completion_io_timeout;submit_bio_wait;blkdev_issue_flush;ext4_sync_file",
            "disk",
        ),
        ("umount2", "", "folio_wait_bit;folio_wait_writeback;__filemap_fdatawait_range;sync_inodes_sb", "disk"),
        ("", "", "folio_wait_bit_common;filemap_fault;__do_fault;do_fault", "disk"),
        ("mount", "", "rwsem_down_write_slowpath;down_write;ovl_parent_lock;ovl_cleanup", "lock"),
        ("sendto", "sockfs", "__mutex_lock.constprop.0;rtnetlink_rcv_msg;netlink_rcv_skb", "lock"),
        ("sendto", "sockfs", "wait_for_completion;netlink_sendmsg;__sys_sendto", "netlink"),
        ("futex", "", "", "lock"),
        ("epoll_pwait", "", "", "socket"),
        ("nanosleep", "", "", "timer"),
        ("waitid", "pipefs", "do_wait;kernel_waitid;__do_sys_waitid", "child"),  # its argument is no descriptor
        ("clone", "", "__wait_for_common;wait_for_completion_state;kernel_clone;__do_sys_clone", "child"),
        ("openat", "", "wait_for_partner;fifo_open;do_dentry_open;vfs_open", "pipe"),
        ("read", "pipefs", "anon_pipe_read;vfs_read;ksys_read", "pipe"),
        ("read", "sockfs", "unix_stream_read_generic;unix_stream_recvmsg;sock_recvmsg", "socket"),
        ("umount2", "", "namespace_unlock;path_umount", "mount"),
        ("read", "proc", "some_new_function", "other"),
    ],
)
def test_a_sleep_waits_for_what_its_stack_its_call_or_its_file_says(call, filesystem, stack, reason):
    found = load_causes().reason(Sleep(call, filesystem, tuple(filter(None, stack.split(";")))))
    assert found == reason


def known(**changes):
    (cause,) = causes_of([replace(STEP, **changes)], load_causes(), VERSION)
    return cause


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"program": "libnetwork-setkey", "state": "cpu", "reason": ""}, "engine_executed_again"),
        ({"program": "set-ipv6", "state": "runqueue", "reason": ""}, "engine_executed_again"),
        (
            {"reason": "rcu", "call": "sendto", "stack": ("rcu_barrier", "__dev_change_net_namespace")},
            "veth_rcu_barrier",
        ),
        ({"reason": "rcu", "call": "sendto", "stack": ("synchronize_rcu_expedited", "veth_newlink")}, "network_rcu"),
        (
            {"reason": "rcu", "call": "write", "file": "cgroup.procs", "stack": ("x", "cgroup_procs_write_start")},
            "cgroup_rcu",
        ),
        ({"reason": "rcu", "call": "umount2"}, "mount_rcu"),
        ({"call": "umount2"}, "overlay_sync"),
        ({"call": "fdatasync", "file": "local-kv.db"}, "network_store_sync"),
        ({"call": "fdatasync", "file": "meta.db", "program": "containerd"}, "containerd_store_sync"),
        ({"call": "fsync", "file": ".tmp-config.v2.json123"}, "container_state_sync"),
        ({"call": "renameat", "stack": ("submit_bio_wait", "blkdev_issue_discard")}, "discard_on_remove"),
        ({"state": "cpu", "reason": "", "phase": SECCOMP, "program": "runc init"}, "seccomp_filter"),
        ({"state": "cpu", "reason": "", "program": "runc init"}, "go_start_up"),
        ({"state": "cpu", "reason": "", "program": "iptables"}, "iptables"),
        ({"state": "runqueue", "reason": ""}, "runqueue"),
        ({"stack": ("folio_wait_bit_common", "filemap_fault")}, "page_faults"),
    ],
)
def test_what_is_known_is_recognised_and_every_cause_of_the_catalogue_can_be(changes, name):
    cause = known(**changes)
    assert cause.id == name
    assert cause.duration_ns == 10
    assert "{" not in cause.text


def test_every_cause_of_the_catalogue_is_tried_above():
    (mark,) = test_what_is_known_is_recognised_and_every_cause_of_the_catalogue_can_be.pytestmark
    assert {name for _, name in mark.args[1]} == {cause.id for cause in load_causes().causes}


def test_phases_of_causes_are_documented_ones():
    documented = {phase.id for phase in load().phases}
    assert {phase for cause in load_causes().causes for phase in cause.phases} <= documented


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("20.10.24+dfsg1", "engine_executed_again"),
        ("27.5.1", "engine_executed_again"),
        ("28.0.0", "runqueue"),
        ("28.5.2+dfsg", "runqueue"),
        ("", "engine_executed_again"),
        ("dev", "engine_executed_again"),
    ],
)
def test_a_cause_is_one_of_the_versions_that_have_it(version, name):
    step = replace(STEP, program="set-ipv6", state="runqueue", reason="")
    (cause,) = causes_of([step], load_causes(), version)
    assert cause.id == name


def test_words_count_calls_processes_and_name_files():
    path = [
        replace(STEP, call="fsync", file=".tmp-config.v2.json1", call_ns=5),
        replace(STEP, call="fsync", file=".tmp-config.v2.json1", call_ns=5, start_ns=10),  # the same call sleeps again
        replace(STEP, call="fsync", file=".tmp-config.v2.json2", call_ns=30, start_ns=31),
        replace(STEP, program="libnetwork-setkey", pid=7, state="cpu", reason="", start_ns=50),
        replace(STEP, program="set-ipv6", pid=8, state="cpu", reason="", start_ns=60, duration_ns=90),
    ]
    again, state = causes_of(path, load_causes(), VERSION)
    assert (
        again.text
        == "dockerd's binary was executed 2 more times (libnetwork-setkey and set-ipv6), for about 1 ms of work"
    )
    assert (again.duration_ns, again.steps) == (100, (3, 4))
    assert again.remedy is not None
    assert again.remedy.source
    assert again.remedy.risk
    assert state.text == "2 fsyncs of config.v2.json"
    assert (state.duration_ns, state.steps) == (30, (0, 1, 2))


def test_what_nobody_wrote_down_is_named_by_call_file_and_process():
    path = [
        replace(STEP, program="frob create", reason="lock", call="flock", file="/run/frob.lock", start_ns=start_ns)
        for start_ns in (0, 20, 40)
    ]
    path += [
        replace(STEP, program="", reason="other", start_ns=60),
        replace(STEP, state="cpu", reason="", program="frob"),
    ]
    causes = causes_of(path, load_causes(), VERSION)
    assert [(cause.id, cause.text) for cause in causes] == [
        ("blocked.lock.flock.frob.lock.frob_create", "frob create: flock of frob.lock waited for a lock (3 times)"),
        (
            "blocked.other",
            "a process that began before: a sleep outside of system calls waited for something in the kernel",
        ),
        ("cpu.frob", "frob ran on a CPU"),
    ]


def test_every_step_is_in_one_cause():
    path = [
        replace(STEP, call=call, start_ns=n, duration_ns=n) for n, call in enumerate(("fsync", "umount2", "x", "x"))
    ]
    causes = causes_of(path, load_causes(), VERSION)
    assert sorted(n for cause in causes for n in cause.steps) == [0, 1, 2, 3]
    assert sum(cause.duration_ns for cause in causes) == sum(step.duration_ns for step in path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b/config.v2.json", "config.v2.json"),
        (".tmp-hostconfig.json98", "hostconfig.json"),
        (".tmp-hostconfig.json", "hostconfig.json"),
        ("merged/", "merged"),
        ("", ""),
    ],
)
def test_a_file_is_called_what_people_call_it(path, name):
    assert file_name(path) == name


REASON = '[[reason]]\nname = "disk"\ntitle = "the disk"\ncalls = ["fsync"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[", "c.toml: not TOML"),
        ('[[reason]]\ntitle = "t"\n', "c.toml: an entry without name"),
        ('[[reason]]\nname = "a"\n', "c.toml: a: title is missing"),
        ('[[reason]]\nname = "a"\ntitle = "t"\n', "c.toml: a: needs stack, calls or filesystems"),
        ('[[reason]]\nname = "a"\ntitle = "t"\ncall = ["x"]\n', "c.toml: a: unknown key 'call'"),
        ('[[reason]]\nname = "a"\ntitle = "t"\ncalls = "x"\n', "c.toml: a: calls must be a list of names"),
        (REASON + REASON, "c.toml: disk: is there twice"),
        ('[[cause]]\nid = "a"\n', "c.toml: a: text is missing"),
        ('[[cause]]\nid = "a"\ntext = "t"\n', "c.toml: a: would fit everything"),
        ('[[cause]]\nid = "a"\ntext = "t"\nstates = ["idle"]\n', "c.toml: a: no such one of states: idle"),
        ('[[cause]]\nid = "a"\ntext = "t"\nreasons = ["disk"]\n', "c.toml: a: no such one of reasons: disk"),
        ('[[cause]]\nid = "a"\ntext = "{who}"\ncalls = ["x"]\n', "c.toml: a: no such place in a text: {who}"),
        (
            '[[cause]]\nid = "a"\ntext = "t"\ncalls = ["x"]\nremedy.text = "r"\n',
            "c.toml: a: a remedy needs text, source and risk",
        ),
    ],
)
def test_a_data_file_that_breaks_a_rule_is_refused_with_the_reason(text, said):
    with pytest.raises(ObserveError, match="^" + said.replace("[", r"\[").replace("{", r"\{")):
        parse_causes(text, "c.toml")
