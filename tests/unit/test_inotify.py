# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import select
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyinotify
import pytest

from observe.collectors.inotify import InotifyCollector, InotifyLosses, is_watched
from observe.errors import HostCannotError
from observe.model import Kind, Mark

ROOT = "/var/lib/docker"
IMAGE_LAYER = "overlay2/aaaa"
CREATE, DELETE, ATTRIB, MODIFY = (
    pyinotify.IN_CREATE,
    pyinotify.IN_DELETE,
    pyinotify.IN_ATTRIB,
    pyinotify.IN_MODIFY,
)
ISDIR, MOVED_FROM, MOVED_TO = pyinotify.IN_ISDIR, pyinotify.IN_MOVED_FROM, pyinotify.IN_MOVED_TO
#: Directories of the tree below that get a watch.
WATCHED = {
    "",
    "/containers",
    "/image",
    "/image/overlay2",
    "/image/overlay2/layerdb",
    "/network",
    "/network/files",
    "/tmp",
    "/volumes",
    "/overlay2",
    "/overlay2/l",
    "/overlay2/aaaa",
    "/overlay2/aaaa/diff",
    "/overlay2/aaaa/work",
}


@pytest.fixture
def disk(tmp_path):
    """An engine's data root, below a root directory of its own."""
    root = tmp_path / ROOT[1:]
    for folder in ("containers", "image/overlay2/layerdb", "network/files", "tmp", "volumes", "overlay2/l", "swarm/x"):
        (root / folder).mkdir(parents=True)
    (root / IMAGE_LAYER / "diff/usr/share/doc").mkdir(parents=True)
    (root / IMAGE_LAYER / "work").mkdir()
    return root


@pytest.fixture
def collector(disk):
    tmp_path = disk.parents[2]
    before = inotify_descriptors()
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()
    yield collector
    collector.stop()
    assert inotify_descriptors() == before


def inotify_descriptors():
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        # The listing's own descriptor is gone by now.
        with contextlib.suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return links.count("anon_inode:inotify")


def told(collector):
    """What a drain gives: (path below the data root, mask, marks) in order."""
    events = list(collector.drain())
    assert all(event.path.startswith(ROOT) for event in events)
    assert {event.kind for event in events} <= {Kind.INOTIFY}
    assert {(event.pid, event.fd) for event in events} <= {(0, -1)}
    return [(event.path[len(ROOT) :], event.flags, event.marks) for event in events]


def watched(collector):
    """Paths below the data root that have a watch, as our books and the kernel's agree on."""
    fdinfo = Path(f"/proc/self/fdinfo/{collector.fileno()}").read_text(encoding="ascii")
    kernel = {int(line.split()[1].removeprefix("wd:"), 16) for line in fdinfo.splitlines() if "wd:" in line}
    assert kernel == set(collector._directories) == set(collector._manager.watches)
    return {directory.path[len(ROOT) :] for directory in collector._directories.values()}


def flood(disk, count):
    """`count` events that the kernel cannot merge."""
    files = [disk / "tmp/one", disk / "tmp/two"]
    for number in range(count):
        files[number % 2].chmod(0o600)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", True),
        ("containers", True),
        ("containers/id/mounts", True),
        ("containers/id/mounts/shm", False),
        ("image/overlay2/layerdb/mounts/id", True),
        ("network/files", True),
        ("tmp/build", True),
        ("tmp/build/context", False),
        ("volumes/name", True),
        ("volumes/name/_data", False),
        ("swarm", False),
        ("containerd", False),
        ("vfs", False),
        ("overlay2/l", True),
        ("overlay2/x", True),
        ("overlay2/x/diff", True),
        ("overlay2/x/diff/usr", False),
        ("overlay2/x/work/work", True),
        ("overlay2/x/work/work/#3fed", False),
        ("overlay2/x/merged", False),
        ("overlay2/x-init/merged", False),
        ("overlay2/x-init/diff/dev/pts", True),
        ("overlay2/x-init/merged/dev", False),
    ],
)
def test_which_directories_are_watched(path, expected):
    assert is_watched(path, "overlay2") is expected


def test_another_drivers_folder():
    assert is_watched("btrfs/subvolumes/x", "btrfs")
    assert not is_watched("btrfs/subvolumes/x/usr", "btrfs")
    assert not is_watched("overlay2/x", "btrfs")


def test_start_watches_the_areas_and_tells_nothing(collector):
    assert watched(collector) == WATCHED
    assert told(collector) == []
    assert collector.losses == InotifyLosses(0, 0)
    assert collector.warnings == []


def test_masks_paths_and_order(collector, disk):
    file = disk / "network/files/local-kv.db"
    file.touch()
    file.write_text("x", encoding="ascii")
    file.chmod(0o600)
    file.unlink()
    path = "/network/files/local-kv.db"
    assert told(collector) == [(path, mask, Mark(0)) for mask in (CREATE, MODIFY, ATTRIB, DELETE)]


def test_an_event_of_a_watched_directory_comes_from_its_parent_and_from_itself(collector, disk):
    (disk / IMAGE_LAYER / "diff").chmod(0o700)
    assert told(collector) == [(f"/{IMAGE_LAYER}/diff", ATTRIB | ISDIR, Mark(0))] * 2


def test_the_descriptor_tells_when_events_wait_and_times_are_the_readers(collector, disk):
    assert select.select([collector], [], [], 0)[0] == []
    (disk / "tmp/x").touch()
    assert select.select([collector], [], [], 5)[0] == [collector]
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    events = list(collector.drain())
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert all(before <= event.time_ns <= after for event in events)
    assert len(events) == 1
    assert select.select([collector], [], [], 0)[0] == []


def test_what_is_found_in_a_new_directory_is_marked_invented(collector, disk):
    (disk / "containers/id/mounts/shm").mkdir(parents=True)
    (disk / "containers/id/hosts").touch()
    (disk / "containers/id/mounts/shm/private").touch()
    assert told(collector) == [
        ("/containers/id", CREATE | ISDIR, Mark(0)),
        ("/containers/id/hosts", CREATE, Mark.INVENTED),
        ("/containers/id/mounts", CREATE | ISDIR, Mark.INVENTED),
        ("/containers/id/mounts/shm", CREATE | ISDIR, Mark.INVENTED),
    ]
    (disk / "containers/id/mounts/secrets").touch()
    (disk / "containers/id/hosts").write_text("x", encoding="ascii")
    assert told(collector) == [
        ("/containers/id/mounts/secrets", CREATE, Mark(0)),
        ("/containers/id/hosts", MODIFY, Mark(0)),
    ]


def test_a_true_event_takes_the_place_of_the_invented_one(collector, disk, monkeypatch):
    """A file that comes after the watch and before the search of the directory is in both: told once."""
    search = collector._list

    def fill_then_search(path):
        if path.endswith("/id"):
            os.mknod(disk / "containers/id/hosts")
        return search(path)

    (disk / "containers/id").mkdir()
    (disk / "containers/id/older").touch()
    monkeypatch.setattr(collector, "_list", fill_then_search)
    assert told(collector) == [
        ("/containers/id", CREATE | ISDIR, Mark(0)),
        ("/containers/id/older", CREATE, Mark.INVENTED),
        ("/containers/id/hosts", CREATE, Mark(0)),
    ]


def test_a_true_event_of_something_else_does_not(collector, disk, monkeypatch):
    search = collector._list

    def search_then_replace(path):
        found = search(path)
        if path.endswith("/id"):
            (disk / "containers/id/hosts").unlink()
            os.mknod(disk / "containers/id/hosts")
        return found

    (disk / "containers/id").mkdir()
    os.mknod(disk / "containers/id/hosts")
    monkeypatch.setattr(collector, "_list", search_then_replace)
    assert told(collector)[1:] == [
        ("/containers/id/hosts", CREATE, Mark.INVENTED),
        ("/containers/id/hosts", DELETE, Mark(0)),
        ("/containers/id/hosts", CREATE, Mark(0)),
    ]


def test_a_new_layer_is_watched_without_merged_and_without_what_a_container_does(collector, disk):
    (disk / "overlay2/bbbb-init/diff/dev").mkdir(parents=True)
    (disk / "overlay2/bbbb/diff").mkdir(parents=True)
    for layer in ("bbbb-init", "bbbb"):
        (disk / f"overlay2/{layer}/merged/dev").mkdir(parents=True)
        (disk / f"overlay2/{layer}/work/work").mkdir(parents=True)
    collector.drain()
    new = watched(collector) - WATCHED
    assert new == {
        *(f"/overlay2/bbbb-init{part}" for part in ("", "/diff", "/diff/dev", "/work", "/work/work")),
        *(f"/overlay2/bbbb{part}" for part in ("", "/diff", "/work", "/work/work")),
    }
    (disk / "overlay2/bbbb-init/diff/dev/shm").mkdir()
    (disk / "overlay2/bbbb/merged/dev/shm").mkdir()
    (disk / "overlay2/bbbb/merged").chmod(0o700)
    assert told(collector) == [
        ("/overlay2/bbbb-init/diff/dev/shm", CREATE | ISDIR, Mark(0)),
        ("/overlay2/bbbb/merged", ATTRIB | ISDIR, Mark(0)),
    ]


def test_an_existing_image_costs_few_watches_however_many_directories_it_has(disk, tmp_path):
    for number in range(300):
        (disk / IMAGE_LAYER / f"diff/usr/{number}").mkdir()
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()
    assert watched(collector) == WATCHED
    collector.stop()


def test_moves_have_their_cookie_and_a_renamed_directory_keeps_its_watch(collector, disk):
    (disk / "image/overlay2/layerdb/tmp/sub").mkdir(parents=True)
    collector.drain()
    (disk / "image/overlay2/layerdb/tmp").rename(disk / "image/overlay2/layerdb/done")
    (disk / "image/overlay2/layerdb/done/sub/diff").touch()
    moved, arrived, *rest = collector.drain()
    assert (moved.flags, arrived.flags) == (MOVED_FROM | ISDIR, MOVED_TO | ISDIR)
    assert moved.ret == arrived.ret != 0
    assert (moved.path, arrived.path) == (
        f"{ROOT}/image/overlay2/layerdb/tmp",
        f"{ROOT}/image/overlay2/layerdb/done",
    )
    assert [(event.path, event.flags, event.marks) for event in rest] == [
        (f"{ROOT}/image/overlay2/layerdb/done/sub/diff", CREATE, Mark(0)),
    ]
    assert {p for p in watched(collector) if "layerdb/" in p} == {
        "/image/overlay2/layerdb/done",
        "/image/overlay2/layerdb/done/sub",
    }


def test_a_directory_that_moves_away_loses_its_watches(collector, disk, tmp_path):
    (disk / "containers/id/mounts").mkdir(parents=True)
    collector.drain()
    assert "/containers/id/mounts" in watched(collector)
    (disk / "containers/id").rename(tmp_path / "elsewhere")
    assert told(collector) == [("/containers/id", MOVED_FROM | ISDIR, Mark(0))]
    (tmp_path / "elsewhere/x").touch()
    assert told(collector) == []
    assert watched(collector) == WATCHED


def test_a_directory_that_takes_the_place_of_one_that_moved_away_is_watched(collector, disk):
    """The engine does this to `tmp` when it starts."""
    (disk / "tmp").rename(disk / "tmp-old")
    (disk / "tmp").mkdir()
    collector.drain()
    assert watched(collector) == WATCHED
    os.mknod(disk / "tmp/x")
    os.mknod(disk / "tmp-old/y")
    assert told(collector) == [("/tmp/x", CREATE, Mark(0))]


def test_a_directory_that_moves_there_and_back_stays_watched(collector, disk):
    (disk / "containers/id").mkdir()
    collector.drain()
    (disk / "containers/id").rename(disk / "containers/away")
    (disk / "containers/away").rename(disk / "containers/id")
    collector.drain()
    assert watched(collector) == WATCHED | {"/containers/id"}
    os.mknod(disk / "containers/id/x")
    assert told(collector) == [("/containers/id/x", CREATE, Mark(0))]


def test_a_removed_directory_leaves_no_watch_behind(collector, disk):
    for _ in range(3):
        (disk / "containers/id/mounts").mkdir(parents=True)
        collector.drain()
        shutil.rmtree(disk / "containers/id")
        assert ("/containers/id", DELETE | ISDIR, Mark(0)) in told(collector)
        assert watched(collector) == WATCHED


def test_names_that_are_not_utf8_are_told_readably_and_lose_nothing(collector, disk):
    os.mknod(os.fsencode(disk) + b"/tmp/\xff\xfe")
    os.mknod(disk / "tmp/日本")
    assert told(collector) == [("/tmp/\\xff\\xfe", CREATE, Mark(0)), ("/tmp/日本", CREATE, Mark(0))]
    assert collector.losses == InotifyLosses(0, 0)


def test_a_directory_whose_name_is_not_utf8_is_counted(collector, disk):
    (disk / os.fsdecode(b"containers/\xff")).mkdir()
    assert told(collector) == [("/containers/\\xff", CREATE | ISDIR, Mark(0))]
    assert collector.losses.unwatched_directories == 1
    assert len(collector.warnings) == 1


def test_a_drain_that_needs_many_reads_keeps_everything(collector, disk):
    names = [f"{number:0200}" for number in range(3000)]
    for name in names:
        os.mknod(disk / "tmp" / name)
    assert [path for path, _, _ in told(collector)] == [f"/tmp/{name}" for name in names]


def test_overflow_is_counted_and_the_tree_is_rescanned(disk, tmp_path):
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    for name in ("tmp/one", "tmp/two"):
        (disk / name).touch()
    (disk / "containers/old/mounts").mkdir(parents=True)
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()

    flood(disk, queue + 10)
    shutil.rmtree(disk / "containers/old")
    (disk / "containers/new").mkdir()
    (disk / "containers/new/hosts").touch()
    (disk / "network/files/local-kv.db").touch()
    events = told(collector)

    assert collector.losses == InotifyLosses(overflows=1, unwatched_directories=0)
    assert [marks for _, _, marks in events[:queue]] == [Mark(0)] * queue
    marks = Mark.INVENTED | Mark.RESCANNED
    assert sorted(events[queue:]) == [
        ("/containers/new", CREATE | ISDIR, marks),
        ("/containers/new/hosts", CREATE, marks),
        ("/network/files/local-kv.db", CREATE, marks),
    ]
    assert watched(collector) == WATCHED | {"/containers/new"}

    (disk / "containers/new/hosts").write_text("x", encoding="ascii")
    assert told(collector) == [("/containers/new/hosts", MODIFY, Mark(0))]
    collector.stop()


def test_a_rescan_knows_what_events_told_before_it(disk, tmp_path):
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    for name in ("tmp/one", "tmp/two", "tmp/again"):
        (disk / name).touch()
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()
    os.mknod(disk / "tmp/told")
    (disk / "tmp/again").unlink()
    flood(disk, queue + 10)
    os.mknod(disk / "tmp/again")
    assert [path for path, _, marks in told(collector) if Mark.RESCANNED in marks] == ["/tmp/again"]
    collector.stop()


def test_a_second_overflow_tells_only_what_is_new_since_the_first(disk, tmp_path):
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    for name in ("tmp/one", "tmp/two"):
        (disk / name).touch()
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()
    for name in ("first", "second"):
        flood(disk, queue + 10)
        os.mknod(disk / "tmp" / name)
        rescanned = [path for path, _, marks in told(collector) if Mark.RESCANNED in marks]
        assert rescanned == [f"/tmp/{name}"]
    assert collector.losses.overflows == 2
    collector.stop()


def test_a_rescan_counts_no_unwatched_directory_twice_and_forgets_none(disk, tmp_path):
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    for name in ("tmp/one", "tmp/two"):
        (disk / name).touch()
    unwatchable = disk / os.fsdecode(b"containers/\xff")
    unwatchable.mkdir()
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()
    flood(disk, queue + 10)
    collector.drain()
    assert collector.losses == InotifyLosses(overflows=1, unwatched_directories=1)
    unwatchable.rmdir()
    flood(disk, queue + 10)
    collector.drain()
    assert collector.losses == InotifyLosses(overflows=2, unwatched_directories=1)
    collector.stop()


def test_an_event_during_the_rescan_is_told_once(disk, tmp_path, monkeypatch):
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    for name in ("tmp/one", "tmp/two"):
        (disk / name).touch()
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.start()
    search = collector._list

    def fill_then_search(path):
        if path.endswith("/containers"):
            os.mknod(disk / "containers/during")
        return search(path)

    flood(disk, queue + 10)
    monkeypatch.setattr(collector, "_list", fill_then_search)
    assert told(collector)[queue:] == [("/containers/during", CREATE, Mark(0))]
    collector.stop()


def test_no_data_root_is_an_error_that_says_what_to_check(tmp_path):
    with pytest.raises(HostCannotError, match="docker info"):
        InotifyCollector(tmp_path, ROOT, "overlay2").start()


@pytest.mark.usefixtures("disk")
def test_stop_can_come_twice_or_first(tmp_path):
    collector = InotifyCollector(tmp_path, ROOT, "overlay2")
    collector.stop()
    collector.start()
    assert not os.get_inheritable(collector.fileno())
    collector.stop()
    collector.stop()
    assert (collector.fileno(), len(collector.drain())) == (-1, 0)


# The limits belong to a user namespace of the test's own: the host's stay as they are.
LIMITED = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from observe.collectors.inotify import InotifyCollector
    collector = InotifyCollector(Path(sys.argv[1]), sys.argv[2], "overlay2")
    collector.start()
    os.makedirs(f"{sys.argv[1]}{sys.argv[2]}/containers/id/mounts")
    print(len(collector.drain()), collector.losses.overflows, collector.losses.unwatched_directories)
    print("\\n".join(collector.warnings))
    collector.stop()
""")


def run_limited(tmp_path, limit, value):
    """What the script above prints under a limit: numbers of the first line, warnings."""
    setup = f'echo {value} > /proc/sys/user/{limit} && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "sh", "-c", setup, "sh"]
    possible = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if possible.returncode != 0:
        pytest.skip(f"no user namespace of our own here: {possible.stderr.strip()}")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", LIMITED, str(tmp_path), ROOT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stderr == ""
    numbers, *warnings = done.stdout.splitlines()
    return tuple(map(int, numbers.split())), warnings


@pytest.mark.usefixtures("disk")
def test_the_watch_limit_is_counted_and_said_once(tmp_path):
    (events, overflows, unwatched), warnings = run_limited(tmp_path, "max_inotify_watches", 5)
    assert overflows == 0
    # Whether the new container's directory was seen depends on which five got a watch.
    assert unwatched - len(WATCHED) + 5 == (2 if events else 0)
    (warning,) = warnings
    assert "sysctl fs.inotify.max_user_watches=" in warning


@pytest.mark.usefixtures("disk")
def test_the_instance_limit_is_said_and_the_run_goes_on(tmp_path):
    (events, overflows, unwatched), warnings = run_limited(tmp_path, "max_inotify_instances", 0)
    assert (events, overflows, unwatched) == (0, 0, len(WATCHED))
    (warning,) = warnings
    assert "sysctl fs.inotify.max_user_instances=" in warning
