# SPDX-License-Identifier: Apache-2.0
"""Which container a process or a goroutine works for."""

from __future__ import annotations

import pytest
from streams import CONTAINERD, DATA, DOCKERD, EXEC, MS, SECOND, container_id, identity, layer

from observe.correlate.identity import Identities
from observe.correlate.lineage import Binding, Lineage
from observe.correlate.rows import Row, rows_of
from observe.model import Event, EventBatch, Kind, Mark

ONE, TWO = container_id(1), container_id(2)
SHIM = 100


def row(kind: Kind, path: str = "", pid: int = DOCKERD, g: int = 0xC1, at_ns: int = 0, **columns: object) -> Row:
    event = Event(at_ns, kind, goroutine=g, pid=pid, path=path, **{"tid": pid, **columns})  # type: ignore[arg-type]
    return next(rows_of(EventBatch.of([event])))


@pytest.fixture
def identities() -> Identities:
    return Identities()


@pytest.fixture
def lineage(identities) -> Lineage:
    return with_daemons(Lineage(identities, goroutines=True))


def with_daemons(lineage: Lineage) -> Lineage:
    for pid, role in ((DOCKERD, "dockerd"), (CONTAINERD, "containerd")):
        lineage.learn({"pid": pid, "role": role, "argv": [role]})
    return lineage


def follow(lineage: Lineage, *rows: Row) -> list[str | None]:
    """The container of each event, as the correlator asks."""
    found = []
    for each in rows:
        found.append(lineage.container_of(each))
        lineage.follow(each, found[-1])
    return found


def shim_starts(pid: int = SHIM, container: str = ONE) -> Row:
    return row(Kind.SCHED_PROCESS_EXEC, "/usr/bin/containerd-shim", pid, detail=f"shim\0-id\0{container}\0start")


def forks(parent: int, child: int, **columns: object) -> Row:
    return row(Kind.SCHED_PROCESS_FORK, pid=parent, ret=child, **columns)


def exits(pid: int, tid: int | None = None) -> Row:
    return row(Kind.SCHED_PROCESS_EXIT, pid=pid, tid=pid if tid is None else tid)


def silent(pid: int) -> Row:
    """A call that names nothing."""
    return row(Kind.UNSHARE, pid=pid)


def test_a_process_belongs_to_the_container_that_its_arguments_name_and_so_do_its_descendants(lineage):
    found = follow(lineage, shim_starts(), forks(SHIM, 101), silent(101), forks(101, 102), silent(102))
    assert found == [ONE] * 5


def test_a_process_stays_with_its_container_whatever_it_names_later(lineage):
    follow(lineage, shim_starts())
    assert lineage.container_of(row(Kind.MKDIR, f"{DATA}/containers/{TWO}", SHIM)) == ONE


def test_a_daemon_belongs_to_nobody_but_what_it_names_does(lineage):
    named = row(Kind.MKDIR, f"{DATA}/containers/{ONE}")
    assert follow(lineage, named, silent(DOCKERD), silent(CONTAINERD)) == [ONE, None, None]


def test_a_layer_counts_once_its_container_is_known(lineage, identities):
    call = row(Kind.MOUNT, f"{DATA}/overlay2/{layer(1)}/merged")
    assert lineage.container_of(call) is None
    identities.learn(identity(1, 0).data)
    assert lineage.container_of(call) == ONE


def test_either_path_and_the_arguments_may_name_it(lineage):
    path = f"{DATA}/containers/{ONE}/x"
    assert lineage.container_of(row(Kind.RENAME, "/elsewhere/entirely", path2=path)) == ONE
    assert lineage.container_of(row(Kind.SCHED_PROCESS_EXEC, "/usr/bin/runc", 7, detail=f"runc\0start\0{ONE}")) == ONE


@pytest.mark.parametrize("ends", [exits(101), row(Kind.EXECVE, "/bin/true", 101, marks=Mark.ENTRYPOINT)])
def test_the_namespace_of_a_process_names_its_container_also_when_it_is_no_longer_followed(lineage, ends):
    follow(lineage, shim_starts(), forks(SHIM, 101), ends)
    assert lineage.container_of(row(Kind.OPENAT, "/proc/101/ns/net")) == ONE
    assert lineage.of_process(101) == ONE


def test_a_number_that_is_used_again_is_another_process(lineage):
    follow(lineage, shim_starts(), forks(SHIM, 101), exits(101))
    # dockerd starts iptables for nobody we know of
    assert follow(lineage, forks(DOCKERD, 101), silent(101)) == [None, None]
    assert lineage.of_process(101) is None


def test_a_number_whose_end_was_not_told_is_another_process_too(lineage):
    follow(lineage, shim_starts(), forks(SHIM, 101))
    assert follow(lineage, forks(DOCKERD, 101), silent(101)) == [None, None]


def test_the_end_of_a_thread_is_not_the_end_of_its_process(lineage):
    follow(lineage, shim_starts(), exits(SHIM, tid=SHIM + 1))
    assert lineage.container_of(silent(SHIM)) == ONE


def test_an_entrypoint_that_could_not_be_executed_is_still_ours(lineage):
    failed = row(Kind.EXECVE, "/nothing", 101, marks=Mark.ENTRYPOINT, ret=-2)
    follow(lineage, shim_starts(), forks(SHIM, 101), failed)
    assert lineage.container_of(silent(101)) == ONE


def test_processes_alive_before_the_recording_are_known_by_their_arguments(lineage):
    lineage.learn({"pid": 50, "role": "child", "argv": ["containerd-shim", "-id", ONE]})
    assert lineage.container_of(silent(50)) == ONE
    assert lineage.role(50) == "child"


def test_a_daemon_whose_arguments_name_a_container_still_serves_all(lineage):
    lineage.learn({"pid": 60, "role": "containerd", "argv": ["containerd", "--x", ONE]})
    assert lineage.container_of(silent(60)) is None
    assert lineage.is_engine(60)


def test_a_daemon_that_ended_keeps_its_role(lineage):
    follow(lineage, exits(DOCKERD))
    assert lineage.role(DOCKERD) == "dockerd"
    follow(lineage, forks(1, DOCKERD))
    assert lineage.role(DOCKERD) == "child"


# --- goroutines -------------------------------------------------------------------------------------------------------


def names(container: str, at_ns: int, g: int = 0xC1, pid: int = DOCKERD) -> Row:
    return row(Kind.MKDIR, f"{DATA}/containers/{container}", pid, g, at_ns)


def binding(lineage: Lineage, of: Row) -> Binding | None:
    return lineage.binding(of.pid, of.goroutine, of.time_ns, of.kind)


def test_the_nearest_witness_of_a_goroutine_is_believed_before_and_after(lineage):
    follow(lineage, names(ONE, 100), names(TWO, 200), names(ONE, 900))
    at = [0, 100, 140, 160, 500, 600, 5000]
    found = [binding(lineage, row(Kind.FSYNC, at_ns=moment)).container_id for moment in at]
    assert found == [ONE, ONE, ONE, TWO, TWO, ONE, ONE]


def test_another_goroutine_and_another_daemon_are_no_witnesses(lineage):
    follow(lineage, names(ONE, 100), names(TWO, 100, pid=CONTAINERD))
    assert binding(lineage, row(Kind.FSYNC, g=0xC2)) is None
    assert binding(lineage, row(Kind.FSYNC, pid=CONTAINERD)) is None


def test_without_a_g_register_no_goroutine_is_a_witness(identities):
    lineage = with_daemons(Lineage(identities, goroutines=False))
    follow(lineage, names(ONE, 100))
    assert binding(lineage, row(Kind.FSYNC, at_ns=101)) is None


def test_inotify_itself_is_no_witness(lineage):
    told = row(Kind.INOTIFY, f"{DATA}/containers/{ONE}/hosts")
    assert follow(lineage, told) == [ONE]
    assert binding(lineage, row(Kind.FSYNC)) is None


def test_tables_stay_bounded_over_many_containers(lineage, monkeypatch):
    monkeypatch.setattr("observe.correlate.lineage._GOROUTINES", 10)
    monkeypatch.setattr("observe.correlate.lineage._BINDINGS", 8)
    monkeypatch.setattr("observe.correlate.lineage._PROCESSES", 10)
    for n in range(300):
        pid, entrypoint = 1000 + 2 * n, 1001 + 2 * n
        started = [shim_starts(pid, container_id(n)), forks(pid, entrypoint)]
        runs = row(Kind.EXECVE, "/bin/true", entrypoint, marks=Mark.ENTRYPOINT)
        follow(lineage, *started, runs, exits(pid), *(names(container_id(n), n, g) for g in range(1, 40)))
    assert not lineage._containers
    assert len(lineage._ended) == 10
    assert len(lineage._bindings) == 10
    assert max(map(len, lineage._bindings.values())) <= 8
    assert set(lineage._roles) == {DOCKERD, CONTAINERD}


def test_what_a_goroutine_did_long_ago_is_forgotten_before_what_it_did_lately(lineage, monkeypatch):
    monkeypatch.setattr("observe.correlate.lineage._BINDINGS", 8)
    follow(lineage, *(names(ONE if n < 50 else TWO, n * SECOND) for n in range(100)))
    assert binding(lineage, row(Kind.FSYNC, at_ns=99 * SECOND)).container_id == TWO
    assert binding(lineage, row(Kind.FSYNC, at_ns=0)).container_id == TWO


def test_of_what_a_goroutine_did_in_a_row_the_first_and_the_last_moment_are_kept(lineage):
    moments = [*range(9), 300, *range(400, 409), 450, *range(500, 509)]
    follow(lineage, *(names(TWO if n == 450 else ONE, n * MS) for n in moments))
    kept = [(moment.time_ns // MS, moment.container_id) for moment in lineage._bindings[DOCKERD, 0xC1]]
    assert kept == [(0, ONE), (8, ONE), (300, ONE), (400, ONE), (408, ONE), (450, TWO), (500, ONE), (508, ONE)]


def test_moments_that_are_told_out_of_order_are_kept(lineage):
    follow(lineage, *(names(ONE, n * MS) for n in (5, 1, 3)))
    assert len(lineage._bindings[DOCKERD, 0xC1]) == 3


def test_an_exec_below_containerd_is_followed_by_what_it_names(lineage):
    path = f"{EXEC}/containerd/daemon/io.containerd.runtime.v2.task/moby/{TWO}"
    assert follow(lineage, forks(CONTAINERD, 300), row(Kind.MKDIR, path, 300), silent(300)) == [None, TWO, TWO]
