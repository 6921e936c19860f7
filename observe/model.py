# SPDX-License-Identifier: Apache-2.0
"""The data that flows through observe: events in, runs out. Imports nothing of ours.

Times are nanoseconds of the host's boot clock (CLOCK_BOOTTIME, `bpf_ktime_get_boot_ns`), unless a
name says otherwise. Events travel as columns (`EventBatch`), never one Python object an event.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt


class Kind(IntEnum):
    """What an event is. The numbers are stored in recordings: never renumber, only append."""

    # System calls, recorded when they return (time_ns: entry, duration_ns: entry to return).
    MOUNT = 1
    UMOUNT2 = 2
    CLONE = 3
    CLONE3 = 4
    UNSHARE = 5
    SETNS = 6
    EXECVE = 7
    EXECVEAT = 8
    PIVOT_ROOT = 9
    MKDIR = 10
    MKDIRAT = 11
    OPENAT = 12
    OPEN = 13
    CREAT = 14
    OPENAT2 = 15
    RENAME = 16
    RENAMEAT = 17
    RENAMEAT2 = 18
    UNLINK = 19
    UNLINKAT = 20
    RMDIR = 21
    FSYNC = 22
    FDATASYNC = 23
    SETHOSTNAME = 24
    CHROOT = 25
    OPEN_TREE = 26
    MOVE_MOUNT = 27
    FSOPEN = 28
    FSCONFIG = 29
    FSMOUNT = 30
    MOUNT_SETATTR = 31
    FORK = 32
    VFORK = 33
    SENDTO = 34  # to netlink only
    PWRITE64 = 35
    SECCOMP = 36
    # Scheduler tracepoints.
    SCHED_PROCESS_FORK = 64
    SCHED_PROCESS_EXEC = 65
    SCHED_PROCESS_EXIT = 66
    # What threads wait for, while an operation is in flight (see `EVENT_DTYPE`; observe/probes/sched.py).
    SCHED_SWITCH = 67
    SCHED_WAKING = 68
    SOCK_SEND_LENGTH = 69
    SCHED_WAKEUP_NEW = 70
    # What dockerd reads from and answers on an API connection.
    API_REQUEST = 80
    API_RESPONSE = 81
    # Entry and return of a function of a Go program of the engine (flags: its number, see NoteKind.FUNCTION;
    # ret: how many bytes deep its frame lies on the goroutine's stack; path: a string argument of an entry).
    # Stack ABI (Go < 1.17): the stack pointer stands in flags above 16 bits, and a return knows no goroutine, no depth.
    FUNCTION_ENTRY = 112
    FUNCTION_RETURN = 113
    # File events as inotify reported them (time_ns: the reader's time).
    INOTIFY = 96

    @property
    def label(self) -> str:
        """The kernel's own name of it, as in tracefs and manual pages: `umount2`, `sched_process_fork`."""
        return self.name.lower()


#: Kinds that say what threads wait for: many, and of use only together (observe/correlate/why).
SCHEDULER = frozenset({Kind.SCHED_SWITCH, Kind.SCHED_WAKING, Kind.SOCK_SEND_LENGTH, Kind.SCHED_WAKEUP_NEW})

#: Kinds that are system calls.
SYSCALLS = frozenset(kind for kind in Kind if kind < Kind.SCHED_PROCESS_FORK)


class Mark(IntFlag):
    """What a reader must know about an event besides its values."""

    INVENTED = 1  # inotify: the watcher made it up for what it found in a new directory
    PATH_UNREADABLE = 2  # the kernel could not read the path (page not present)
    TRUNCATED = 4  # a string was longer than the record
    REDACTED = 8  # arguments were left out on purpose
    ENTRYPOINT = 16  # sched_process_exec of the container's own first program
    FROM_PROC = 32  # arguments were read from /proc/PID/cmdline, not from the kernel's record
    RESCANNED = 64  # inotify: found by the rescan after an overflow
    IMPORTED = 128  # comes from a log recorded elsewhere; time_ns is an order, not a time


#: One event. String columns hold an index into the batch's `strings`; index 0 is the empty string.
#:
#: | column | unit, meaning |
#: |---|---|
#: | time_ns | boot clock; entry of a system call, the moment of everything else |
#: | duration_ns | entry to return of a system call; 0 otherwise |
#: | kind | `Kind` |
#: | marks | `Mark` bits |
#: | pid, tid | thread group and thread, in the initial pid namespace; 0 if unknown (inotify) |
#: | goroutine | Go's g pointer, from the thread's registers at entry (g of another language: arbitrary); 0 if unknown |
#: | ret | return value (negative errno on failure); child pid of a fork; thread that called execve of an exec;
#:           HTTP status of an api_response; cookie of an inotify move |
#: | flags | flags argument: clone, unshare, setns, mount, umount2, open, move_mount …; operation of a seccomp;
#:           type of the first netlink message of a sendto; mask of an inotify event |
#: | fd | descriptor argument (fsync, setns), directory descriptor of an *at call, API connection; -1 if none |
#: | comm | name of the thread |
#: | path | what is acted upon: mount target, new name of a rename, file, directory, program of an exec,
#:           request target of an api_request, full path of an inotify event |
#: | path2 | the other one: mount source, old name of a rename, put_old of a pivot_root |
#: | detail | file system type of a mount or fsopen; arguments of an exec joined by NUL; new host name |
#:
#: Kinds of `SCHEDULER` use the columns like this. sched_switch: `pid`, `tid` leave the CPU (0: a thread that is not
#: looked at) and `ret` is the thread that takes it (0 likewise), whose process stands above 32 bits of `flags`; below
#: 16 bits of `flags` is the state that the first is left in (0: runnable), in the next 16 the number of its system
#: call plus 1 (0: none); `fd`, `path`, `path2` are that call's first argument, if it is a descriptor, its file's name
#: and its kind of file system; `detail` is where in the kernel it sleeps, innermost function first, joined by `;`.
#: sched_waking, sched_wakeup_new: `pid`, `tid` are woken, or begin, by the thread `ret` of the process above 32 bits
#: of `flags`; 0 is an interrupt. sock_send_length: `pid`, `tid` have sent to a unix socket.
EVENT_DTYPE = np.dtype(
    [
        ("time_ns", "<u8"),
        ("duration_ns", "<u8"),
        ("goroutine", "<u8"),
        ("ret", "<i8"),
        ("flags", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("fd", "<i4"),
        ("comm", "<u4"),
        ("path", "<u4"),
        ("path2", "<u4"),
        ("detail", "<u4"),
        ("kind", "<u2"),
        ("marks", "<u2"),
    ]
)

STRING_COLUMNS = ("comm", "path", "path2", "detail")


_NO_MARKS = Mark(0)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, for people and tests; the columns of `EVENT_DTYPE` with the strings in place."""

    time_ns: int
    kind: Kind
    duration_ns: int = 0
    goroutine: int = 0
    ret: int = 0
    flags: int = 0
    pid: int = 0
    tid: int = 0
    fd: int = -1
    comm: str = ""
    path: str = ""
    path2: str = ""
    detail: str = ""
    marks: Mark = _NO_MARKS

    @property
    def end_ns(self) -> int:
        """Boot clock when the call returned."""
        return self.time_ns + self.duration_ns


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Many events as columns: `rows` has EVENT_DTYPE, shape (n,); `strings[0]` is the empty string."""

    rows: npt.NDArray[np.void]
    strings: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Event]:
        """Every event as an `Event`: for tests and single runs, not for the hot path."""
        strings = self.strings
        names = EVENT_DTYPE.names
        assert names is not None  # noqa: S101 - a structured dtype has names
        for row in self.rows.tolist():
            values = dict(zip(names, row, strict=True))
            for column in STRING_COLUMNS:
                values[column] = strings[values[column]]
            values["kind"] = Kind(values["kind"])
            values["marks"] = Mark(values["marks"])
            yield Event(**values)

    def compacted(self) -> EventBatch:
        """The same events, without strings that none of them has."""
        rows = self.rows.copy()
        used = np.zeros(len(self.strings), dtype=np.bool_)
        used[0] = True
        for name in STRING_COLUMNS:
            used[rows[name]] = True
        places = np.cumsum(used) - 1
        for name in STRING_COLUMNS:
            rows[name] = places[rows[name]]
        return EventBatch(rows, tuple(compress(self.strings, used.tolist())))

    @classmethod
    def of(cls, events: Iterable[Event]) -> EventBatch:
        """Columns of single events, in the given order."""
        index = {"": 0}
        names = EVENT_DTYPE.names
        assert names is not None  # noqa: S101 - a structured dtype has names
        rows = [
            tuple(
                index.setdefault(getattr(event, name), len(index)) if name in STRING_COLUMNS else getattr(event, name)
                for name in names
            )
            for event in events
        ]
        return cls(np.array(rows, dtype=EVENT_DTYPE), tuple(index))

    @classmethod
    def concat(cls, batches: Iterable[EventBatch]) -> EventBatch:
        """One batch of many, order kept, string tables merged."""
        index = {"": 0}
        parts = []
        for batch in batches:
            remap = np.array([index.setdefault(text, len(index)) for text in batch.strings], dtype="<u4")
            rows = batch.rows.copy()
            for column in STRING_COLUMNS:
                rows[column] = remap[rows[column]]
            parts.append(rows)
        rows = np.concatenate(parts) if parts else np.empty(0, dtype=EVENT_DTYPE)
        return cls(rows, tuple(index))


def table_of_kinds(kinds: Collection[Kind]) -> npt.NDArray[np.bool_]:
    """A table to look columns of kinds up in: whether each number is one of `kinds`."""
    table = np.zeros(1 << 16, dtype=np.bool_)
    table[list(kinds)] = True
    return table


class NoteKind(StrEnum):
    """What a note in the stream tells."""

    PROCESS = "process"  # a process of the engine that lived before the recording: pid, ppid, role, argv
    CONTAINER = "container"  # identity of a container: see `Container`
    FUNCTION = "function"  # number, name, phase keys and binary of a probed function; or why one is not probed
    LOSS = "loss"  # counters so far: the fields of `Loss` that were counted while recording
    END = "end"  # clean end: why, exit code of COMMAND
    WARNING = "warning"  # one line for people


@dataclass(frozen=True, slots=True)
class Note:
    """A fact beside the events, as JSON: learned at `time_ns`, possibly after the events it explains."""

    kind: NoteKind
    time_ns: int
    data: Mapping[str, Any]


#: What flows from the collectors into a recording, and from a recording into the correlator.
Item = EventBatch | Note


@dataclass(frozen=True, slots=True)
class Header:
    """First thing in a recording."""

    #: {"hostname", "kernel", "arch"}
    host: Mapping[str, Any]
    #: {"version", "go_version", "storage_driver", "data_root", "exec_root", …}; empty for an imported log
    engine: Mapping[str, Any]
    #: Boot clock and epoch at one moment: wall = wall_time_ns + (t - boot_time_ns).
    boot_time_ns: int
    wall_time_ns: int
    tool_version: str
    #: COMMAND, options, origin ("record" or "import").
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Container:
    """Who a container is, as the Docker API and the data root tell."""

    id: str
    name: str = ""
    image: str = ""
    network: str = ""
    #: Layer directory of the container under the storage driver's folder ("" if unknown).
    layer: str = ""
    #: `docker inspect` without environment values and arguments, unless they were asked for.
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """All of it, as it is in a note."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Loss:
    """What is missing from a recording or was not attributed: counts of events."""

    ring_buffer: int = 0  # reserves that failed in the kernel
    program_misses: int = 0  # runs of a program that the kernel skipped
    lineage: int = 0  # processes and connections that the in-kernel filter had no room for
    inotify_overflows: int = 0  # queue overflows (each loses an unknown number of events)
    inotify_watches: int = 0  # directories that could not be watched (a limit was reached)
    inotify_missed: int = 0  # file operations of the system call stream that inotify did not report
    unmatched_returns: int = 0  # returns without an entry (attached in the middle of a call)
    unattributed_events: int = 0  # events during operations that belong to none of them for sure
    damaged_bytes: int = 0  # of the recording file

    @property
    def data_was_lost(self) -> bool:
        """Whether something that happened is missing (inotify's own blindness is not: the kernel stream has it)."""
        return bool(
            self.ring_buffer
            or self.program_misses
            or self.lineage
            or self.inotify_overflows
            or self.inotify_watches
            or self.damaged_bytes
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a probe has cost so far: how often it ran, and for how long."""

    hits: int = 0
    run_ns: int = 0


class Evidence(StrEnum):
    """What a phase's times stand on."""

    FUNCTION = "function"
    KERNEL = "kernel"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Time:
    """What a time on the critical path was spent on; its parts sum to it. `blocked_ns`: by what was waited for."""

    cpu_ns: int = 0
    runqueue_ns: int = 0
    blocked_ns: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PathStep:
    """A piece of an operation's critical path: one thread that ran, waited for a CPU, or was blocked."""

    start_ns: int
    duration_ns: int
    state: str  # "cpu", "runqueue", "blocked"
    reason: str  # of a block: "disk", "rcu" …; else empty
    phase: str  # the innermost one
    program: str
    pid: int
    tid: int
    #: Of a block: the system call, the name of its file, and where in the kernel, innermost function first.
    call: str = ""
    file: str = ""
    stack: tuple[str, ...] = ()
    #: When the call was entered, if it was recorded; else 0.
    call_ns: int = 0


@dataclass(frozen=True, slots=True)
class Remedy:
    """What is known to help, who says so, and what it may harm. Never applied by us."""

    text: str
    source: str
    risk: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a part of an operation's critical path took its time, in plain words; `steps`: index of each piece."""

    id: str
    text: str
    duration_ns: int
    remedy: Remedy | None = None
    steps: tuple[int, ...] = ()


#: Shorter phases are as long as the probes that bound them take.
FLOOR_NS = 5_000


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of one run. A phase that was not seen has evidence none and null times."""

    id: str
    parent: str | None
    step: str
    start_ns: int | None
    duration_ns: int | None
    self_ns: int | None
    evidence: Evidence
    syscalls: int = 0
    file_events: int = 0
    #: Probes of functions that were hit inside, and the own time without what they cost (null without functions).
    probe_hits: int = 0
    corrected_self_ns: int | None = None
    #: (start_ns, duration_ns) of each piece, if there is more than one; duration_ns is their sum.
    pieces: tuple[tuple[int, int], ...] = ()
    #: What it was spent on, if the scheduler's events were recorded.
    time: Time | None = None

    @property
    def at_floor(self) -> bool:
        """Whether functions bound it, and it is too short for that to be a measurement of anything but the probes."""
        return self.evidence is Evidence.FUNCTION and (self.duration_ns or 0) < FLOOR_NS


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call of a probed function. `complete`: its return was seen; else a panic, an exec or the end closed it."""

    name: str
    pid: int
    start_ns: int
    duration_ns: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Calls:
    """The system calls of one kind in one run that have the phase as their innermost one."""

    phase: str
    kind: Kind
    count: int
    duration_ns: int


class DepartureKind(StrEnum):
    """How a run left the documented order."""

    MISSING = "missing"
    REPEATED = "repeated"
    OUT_OF_ORDER = "out_of_order"


@dataclass(frozen=True, slots=True)
class Departure:
    """A departure of a run from the documented order."""

    kind: DepartureKind
    phase: str
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """One operation that a user asked dockerd for, with its phases (the first is the operation itself)."""

    operation: str
    container_id: str | None
    container_name: str | None
    image: str | None
    network: str | None
    outcome: str  # "ok", "failed", "unfinished"
    error: str | None
    start_ns: int
    wall_time_ns: int
    duration_ns: int
    unattributed_ns: int
    departures: tuple[Departure, ...]
    phases: tuple[Span, ...]
    #: The container's configuration as inspect gave it while it was recorded (see `Container`); empty if unknown.
    configuration: Mapping[str, Any] = field(default_factory=dict)
    #: The documented functions that ran, by start.
    functions: tuple[FunctionCall, ...] = ()
    #: What its system calls sum to, by phase and kind.
    calls: tuple[Calls, ...] = ()
    #: Why it took so long, the largest first, and the critical path behind; empty without the scheduler's events.
    causes: tuple[Cause, ...] = ()
    path: tuple[PathStep, ...] = ()
    #: (id of the innermost phase, event), by time; empty unless they were asked for.
    events: tuple[tuple[str, Event], ...] = ()


@dataclass(frozen=True, slots=True)
class Conclusions:
    """What a correlator concluded from a whole recording."""

    #: In the order of their answers; without events.
    runs: tuple[Run, ...]
    #: What is missing or was not attributed, but for damage of the file.
    loss: Loss
    #: One line each, for people.
    warnings: tuple[str, ...] = ()
    #: Phase → the functions that were probed for it.
    functions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: {"name", "binary", "reason"} of documented functions that are there and could not be probed.
    refused: tuple[Mapping[str, Any], ...] = ()
    #: Why events during operations were given to none → how many.
    left: Mapping[str, int] = field(default_factory=dict)
