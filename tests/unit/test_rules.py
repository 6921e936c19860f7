# SPDX-License-Identifier: Apache-2.0
"""The catalogue's kernel evidence: what an event speaks for, and that every pattern of it meets the real world."""

from __future__ import annotations

import re
from functools import cache

import pytest
from streams import CREATE_EXCLUSIVELY, DATA, EXEC, FIXTURES, IN_CREATE, NEWNET, container_id, layer, recorded

from observe.collectors.inotifywait_log import read_log
from observe.correlate.rows import Row, rows_of
from observe.correlate.rules import Rules, glob_to_regex
from observe.errors import ObserveError
from observe.model import Event, EventBatch, Kind
from observe.phases import Phase, load
from observe.phases.catalogue import parse

ID, LAYER = container_id(1), layer(1)
#: What the recordings and logs at hand do not show: a path, and whose it is.
NOT_RECORDED = {
    f"{DATA}/overlay2/{LAYER}/work/work/#3fed": "overlayfs on older kernels",
    f"{DATA}/volumes/db": "a volume",
    f"cpu/docker/{ID}/cgroup.procs": "a file that is opened and not created",
    "/proc/interrupts": "Docker 28",
    "/sys/devices/virtual/powercap": "Docker 25",
    f"{DATA}/containerd/daemon/io.containerd.content.v1.content/ingest/1/data": "an image's manifest",
    f"{DATA}/containerd/daemon/io.containerd.content.v1.content/blobs/sha256/1": "an image's manifest",
    f"{DATA}/image/overlay2/layerdb/tmp/write-set-1": "a pulled layer",
    f"{DATA}/image/overlay2/layerdb/sha256/1": "a pulled layer",
    f"{DATA}/image/overlay2/distribution/diffid-by-digest/sha256/1": "a pulled layer",
    f"{DATA}/image/overlay2/imagedb/content/sha256/1": "a pulled image",
    f"{DATA}/image/overlay2/repositories.json": "a pulled image",
    f"{DATA}/image/overlay2/.tmp-repositories.json1": "a pulled image",
}


def row(kind: Kind, path: str = "", flags: int = 0, pid: int = 10, detail: str = "") -> Row:
    return next(rows_of(EventBatch.of([Event(0, kind, path=path, flags=flags, pid=pid, detail=detail)])))


def rules(operation: str, root: str = DATA) -> Rules:
    return Rules(load().of(operation), root)


def ids(of: Rules, numbers: list[int]) -> list[str]:
    return [of.phases[number].id for number in numbers]


@cache
def real_paths() -> set[str]:
    """Paths of the real recordings and of the walk-through's logs, below one data root."""
    paths: set[str] = set()
    for name in ("create-start", "three-at-once"):
        of, items = recorded(name)
        for item in items:
            if isinstance(item, EventBatch):
                paths |= {text.replace(of.engine["data_root"], DATA) for text in item.strings}
    for log in FIXTURES.glob("inotify-*.log"):
        paths |= set(read_log(log.read_text()).events.strings)
    return paths


def expressions() -> dict[str, re.Pattern[str]]:
    patterns = {path for phase in load().phases for evidence in phase.evidence for path in evidence.paths}
    return {path: re.compile(glob_to_regex(path).replace(re.escape("{data}"), re.escape(DATA))) for path in patterns}


def test_every_path_of_the_catalogue_is_one_that_an_engine_really_has():
    paths = real_paths() | set(NOT_RECORDED)
    assert len(expressions()) > 40
    assert [glob for glob, one in expressions().items() if not any(map(one.fullmatch, paths))] == []


@pytest.mark.parametrize("excused", NOT_RECORDED)
def test_only_what_no_recording_shows_is_excused(excused):
    paths = real_paths()
    mine = [one for one in expressions().values() if one.fullmatch(excused)]
    assert any(not any(map(one.fullmatch, paths)) for one in mine)


def test_every_program_of_the_catalogue_runs_in_a_real_start():
    of, items = recorded("create-start")
    start = rules("start", of.engine["data_root"])
    execs = [r for i in items if isinstance(i, EventBatch) for r in rows_of(i) if r.kind == Kind.SCHED_PROCESS_EXEC]
    seen = {
        start.phases[rule.phase].id
        for rule in start.programs
        if any(rule.matches(row.path, row.detail) for row in execs)
    }
    programs = {start.phases[rule.phase].id for rule in start.programs}
    # No port is published, docker0 is there already, and it is no network of the user's own.
    own = "start.containerd_start.runc_create.network_hook.set_key.resolver"
    assert programs - seen == {"start.network.iptables", "start.network.proxy", own}


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("{data}/tmp/*", "{data}/tmp/a", True),
        ("{data}/tmp/*", "{data}/tmp/a/b", False),
        ("{data}/tmp/**", "{data}/tmp/a/b", True),
        ("{data}/tmp/**", "{data}/tmp", False),
        ("**/netns/*", "/var/run/docker/netns/1", True),
        ("/a.b/*", "/aXb/c", False),
        ("/{id}", f"/{ID}", True),
        ("/{id}", f"/{ID}0", False),
        ("/{layer}-init", f"/{LAYER}-init", True),
        ("/{layer}-init", "/v3cr6iow8pq01znjzs7v3yw2a-init", True),
        ("/{driver}/x", "/overlay2/x", True),
        ("/{driver}/x", "/overlay3/x", False),
    ],
)
def test_patterns_mean_what_the_catalogue_says(pattern, path, fits):
    assert bool(re.fullmatch(glob_to_regex(pattern), path)) is fits


@pytest.mark.parametrize("root", [DATA, f"{DATA}/", "/mnt/my docker (1)"])
def test_the_data_root_is_taken_as_it_is(root):
    of = rules("create", root)
    inside = row(Kind.MKDIRAT, f"{root.rstrip('/')}/overlay2/{LAYER}")
    assert ids(of, of.candidates(inside, "dockerd", True)) == ["create.rw_layer"]
    outside = row(Kind.MKDIRAT, f"{root.rstrip('/')}2/overlay2/{LAYER}")
    assert of.candidates(outside, "dockerd", True) == []


CONFIG = f"{DATA}/containers/{ID}/config.v2.json"
ROOTFS = "start.containerd_start.runc_create.init.rootfs"


@pytest.mark.parametrize(
    ("operation", "event", "role", "phases"),
    [
        ("create", row(Kind.RENAMEAT, CONFIG), "dockerd", ["create.root", "create.register"]),
        ("create", row(Kind.INOTIFY, CONFIG, IN_CREATE), "dockerd", ["create.root", "create.register"]),
        ("create", row(Kind.SETNS, CONFIG), "dockerd", []),  # no file operation
        ("create", row(Kind.MOUNT, f"{DATA}/overlay2/{LAYER}/merged"), "dockerd", ["create.os_specific"]),
        ("start", row(Kind.MOUNT, f"{DATA}/overlay2/{LAYER}/merged"), "dockerd", ["start.mount", "start.cleanup"]),
        ("start", row(Kind.MOUNT, f"{DATA}/overlay2/{LAYER}/merged"), "child", [ROOTFS, "start.cleanup"]),
        ("start", row(Kind.MKDIRAT, f"{EXEC}/containerd/{ID}"), "dockerd", ["start.containerd_create"]),
        ("start", row(Kind.MKDIRAT, f"{EXEC}/containerd/{ID}"), "containerd", []),
    ],
)
def test_an_event_speaks_for_the_phases_of_its_path_and_process(operation, event, role, phases):
    of = rules(operation)
    assert ids(of, of.candidates(event, role, True)) == phases


NETNS = row(Kind.OPENAT, f"{EXEC}/netns/1")
HOOK = "start.containerd_start.runc_create.network_hook"


@pytest.mark.parametrize(
    ("on_request", "phases"), [(True, ["start.network", "start.cleanup"]), (False, [f"{HOOK}.set_key"])]
)
def test_what_dockerd_does_for_the_hook_is_told_by_its_goroutine(on_request, phases):
    of = rules("start")
    assert ids(of, of.candidates(NETNS, "dockerd", on_request)) == phases


def test_an_event_of_inotify_without_a_process_may_be_anybodys():
    of = rules("start")
    nobodys = row(Kind.INOTIFY, f"{DATA}/overlay2/{LAYER}/merged", IN_CREATE, pid=0)
    assert ids(of, of.candidates(nobodys, "child", False))[0] == "start.mount"


@pytest.mark.parametrize(
    ("event", "role", "phases"),
    [
        (row(Kind.SETNS, flags=NEWNET), "dockerd", ["start.network", "start.cleanup"]),
        (row(Kind.UNSHARE, flags=NEWNET | 0x20000), "dockerd", ["start.network"]),
        (row(Kind.SETNS, flags=0x20000), "dockerd", []),
        (row(Kind.SETNS, flags=NEWNET), "child", []),
        (row(Kind.FDATASYNC), "containerd", ["start.containerd_create"]),
        (row(Kind.FSYNC), "containerd", []),
    ],
)
def test_calls_without_a_path_are_weak_witnesses(event, role, phases):
    of = rules("start")
    assert ids(of, of.weak_candidates(event, role, True)) == phases
    assert of.candidates(event, role, True) == []


RUNC = "/usr/bin/runc"


@pytest.mark.parametrize(
    ("path", "words", "phase"),
    [
        ("/usr/bin/containerd-shim-runc-v2", "containerd-shim-runc-v2 -id x start", "start.containerd_start.shim"),
        ("/usr/bin/containerd-shim-runc-v2", "containerd-shim-runc-v2 -id x -address y", None),
        ("/usr/bin/containerd-shim-runc-v2", "containerd-shim-runc-v2 -id x delete", None),
        (RUNC, "runc --log l create --bundle b x", "start.containerd_start.runc_create"),
        ("/opt/wrapper", "anything create --bundle b x", "start.containerd_start.runc_create"),
        (RUNC, "create --bundle", None),  # the first word is the program's name
        (RUNC, "runc init", "start.containerd_start.runc_create.init"),
        (RUNC, "runc --log l start x", "start.containerd_start.runc_start"),
        ("/proc/9/exe", "libnetwork-setkey -exec-root=/r x", HOOK),
        ("/usr/sbin/xtables-nft-multi", "iptables -t nat", "start.network.iptables"),
        ("/usr/sbin/docker-proxy", "/usr/sbin/docker-proxy -proto tcp", "start.network.proxy"),
        ("/proc/self/exe", "setup-resolver /run/netns/1 a b", f"{HOOK}.set_key.resolver"),
        (RUNC, "runc delete x", None),
    ],
)
def test_programs_are_told_by_name_and_arguments(path, words, phase):
    of = rules("start")
    event = row(Kind.SCHED_PROCESS_EXEC, path, detail=words.replace(" ", "\0"))
    assert (
        next((of.phases[rule.phase].id for rule in of.programs if rule.matches(event.path, event.detail)), None)
        == phase
    )


def test_what_was_looked_up_once_is_remembered_but_not_for_ever(monkeypatch):
    monkeypatch.setattr("observe.correlate.rules._CACHED_PATHS", 5)
    of = rules("create")
    for n in range(100):
        event = row(Kind.MKDIRAT, f"{DATA}/overlay2/{layer(n)}")
        assert ids(of, of.candidates(event, "dockerd", True)) == ["create.rw_layer"]
    assert len(of._by_path) <= 5


def test_without_evidence_nothing_speaks_for_anything():
    of = Rules([Phase("x", None, "1", "x"), Phase("x.a", "x", "1", "a")], DATA)
    assert of.candidates(row(Kind.OPENAT, CONFIG, CREATE_EXCLUSIVELY), "dockerd", True) == []


TOP = '[[phase]]\nid = "create"\nstep = "2.1"\ntitle = "create"\n[[phase.evidence]]\n'


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        ('color = "blue"\ncalls = ["mount"]', "unknown key 'color' in evidence"),
        ('role = "dockerd"', "needs either calls or a path, or a program"),
        ('calls = ["mount"]\nprogram = "runc"', "needs either calls or a path, or a program"),
        ('calls = ["mount"]\nrole = "king"', "role must be one of dockerd, containerd, child"),
        ('calls = ["mount"]\ngoroutine = "all"', "goroutine must be one of request, other"),
        ('program = "runc"\nuntil = "later"', "until must be one of exit, last_event"),
        ('path = "{data}/{name}"', "{name} in path and the list name go together"),
        ('path = "{data}"\nname = ["a"]', "{name} in path and the list name go together"),
    ],
)
def test_evidence_that_breaks_a_rule_is_refused(evidence, says):
    with pytest.raises(ObserveError, match=f"x.toml: create: .*{re.escape(says)}"):
        parse(TOP + evidence, "x.toml")


def test_names_are_put_into_the_path_one_by_one():
    (phase,) = parse(TOP + 'path = "{data}/{name}"\nname = ["a", "b*"]', "x.toml")
    assert phase.evidence[0].paths == ("{data}/a", "{data}/b*")
