# SPDX-License-Identifier: Apache-2.0
"""`observe doctor`: what this host can do, and what to do about what it cannot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from observe import host, phases
from observe.engine import Engine, find_engine
from observe.errors import HostCannotError, ObserveError
from observe.probes import kernel_types, sched
from observe.probes.attach import build_image, tracefs
from observe.probes.cache import cache_folder
from observe.probes.targets import Targets, find_targets

NAME = "doctor"
HELP = "say what this host can do, and what to do about what it cannot"

#: Operations that recordings of a live engine follow.
_RECORDED = ("create", "start")
_DONE, _CANNOT = 0, HostCannotError.exit_code


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found. `engine` is None if none was; then a check says why."""

    checks: tuple[host.Check, ...]
    engine: Engine | None
    phases: int
    phases_with_kernel_evidence: int
    #: Phase → the functions of the engine's binaries that time it; the phases that no function was found for.
    functions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_function: tuple[str, ...] = ()
    #: {"name", "binary", "reason"} of functions that are there and cannot be probed.
    refused: tuple[Mapping[str, Any], ...] = ()

    @property
    def can_record(self) -> bool:
        """Whether nothing is missing that recording needs."""
        return all(check.ok for check in self.checks if check.needed)

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as `--json` prints it."""
        return {
            "schema_version": 1,
            "can_record": self.can_record,
            "checks": [asdict(check) for check in self.checks],
            "engine": self.engine
            and {"docker_host": self.engine.docker_host, "pid": self.engine.pid, **self.engine.facts()},
            "phases": {
                "documented": self.phases,
                "with_kernel_evidence": self.phases_with_kernel_evidence,
                "functions": {phase: list(names) for phase, names in self.functions.items()},
                "without_function": list(self.without_function),
                "refused": [dict(refused) for refused in self.refused],
            },
        }


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--docker-host", metavar="URL", help="the engine (default: $DOCKER_HOST, then the usual socket)"
    )


def run(args: argparse.Namespace) -> int:
    """Diagnose and print. Returns 0 if recording is possible here, 3 if not."""
    found = diagnose(args.docker_host)
    if args.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        marks = ("✓", "✗", "·") if _can_print_marks() else ("ok", "MISSING", "-")
        print("\n".join(lines(found, marks)))
    return _DONE if found.can_record else _CANNOT


def diagnose(docker_host: str | None) -> Diagnosis:
    """Look at this host and at the engine at `docker_host`. Raises ObserveError only for a broken catalogue."""
    engine: Engine | None = None
    try:
        engine = find_engine(docker_host)
    except HostCannotError as error:
        # These messages end in what to do: there is no separate remedy.
        of_engine = [host.Check("engine", ok=False, needed=True, found=str(error))]
    else:
        of_engine = list(_engine_checks(engine))
    catalogue = phases.load()
    documented = [phase for phase in catalogue.phases if phase.operation in _RECORDED]
    targets = find_targets(engine, catalogue, cache_folder()) if engine else Targets((), (), ())
    names = [function.name for target in targets.targets for function in target.functions]
    functions = {phase.id: functions_of(phase, names) for phase in documented}
    of_host = host.checks()
    if all(check.ok for check in of_host if check.needed):
        of_host += (_program_check(), why_check(kernel_types.VMLINUX, tracefs() / "events"))
    return Diagnosis(
        checks=(*of_host, *of_engine, *_binary_checks(targets)),
        engine=engine,
        phases=len(documented),
        phases_with_kernel_evidence=sum(bool(phase.evidence) for phase in documented),
        functions={phase: found for phase, found in functions.items() if found},
        without_function=tuple(phase for phase, found in functions.items() if not found),
        refused=targets.refused,
    )


def lines(found: Diagnosis, marks: Sequence[str]) -> Iterator[str]:
    """The diagnosis for people; `marks` are those of what is there, what is missing, and what would only be nice."""
    ok, missing, nice = marks
    rows = [(ok if c.ok else missing if c.needed else nice, c.name, c.found, c.remedy) for c in found.checks]
    rows.append((ok, "phases", _count_of_phases(found), ""))
    mark_width, name_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for mark, name, what, remedy in rows:
        yield f"{mark:<{mark_width}}  {name:<{name_width}}  {what}"
        if remedy:
            yield f"{'':<{mark_width + name_width + 2}}  do: {remedy}"
    if found.engine:
        yield from _functions(found)
    yield ""
    yield "recording is possible" if found.can_record else "recording is not possible: see above"


def _count_of_phases(found: Diagnosis) -> str:
    counts = f"{found.phases} documented, {found.phases_with_kernel_evidence} with kernel evidence"
    return f"{counts}, {len(found.functions)} with their functions in this engine" if found.engine else counts


def _functions(found: Diagnosis) -> Iterator[str]:
    """Which function times which phase, and which phases have none."""
    yield ""
    width = max((len(phase) for phase in found.functions), default=0)
    for phase, names in found.functions.items():
        for row, name in enumerate(names):
            yield f"{phase if not row else '':<{width}}  {name}"
    for phase in found.without_function:
        yield f"{phase:<{width}}  no function found: kernel evidence, if there is any"
    for refused in found.refused:
        yield f"refused: {refused['name']} ({refused['binary']}): {refused['reason']}"


def functions_of(phase: phases.Phase, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the functions that bound a phase, the catalogue's first pattern first."""
    patterns = phase.functions or phase.to_entry or phase.from_return
    found = [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]
    return tuple(dict.fromkeys(found))


def _program_check() -> host.Check:
    """Whether our programs compile here; they stay in the cache, so that the first recording attaches at once."""
    try:
        image = build_image(cache_folder())
    except ObserveError as error:
        return host.Check("programs", ok=False, needed=True, found=str(error))
    return host.Check("programs", ok=True, needed=True, found=f"{len(image.programs)} BPF programs compile")


def why_check(btf: Path, events: Path) -> host.Check:
    """Whether what the time is spent on can be recorded; `btf`: the kernel's type information, `events`: of tracefs."""
    name, without = "record --why", "everything else is recorded without it"
    try:
        sched.kernel_offsets(btf.read_bytes())
    except OSError as error:
        remedy = f"use a kernel with CONFIG_DEBUG_INFO_BTF; {without}"
        return host.Check(name, ok=False, needed=False, found=f"{btf}: {error.strerror}", remedy=remedy)
    except HostCannotError as error:
        remedy = f"use a kernel that this version knows; {without}"
        return host.Check(name, ok=False, needed=False, found=str(error), remedy=remedy)
    there = {path.name for path in events.glob("*/*")}
    lacking = [one for one in sched.RAW_TRACEPOINTS if one not in there]
    if lacking:
        found = f"the kernel has no tracepoint {', '.join(lacking)}"
        return host.Check(name, ok=False, needed=False, found=found, remedy=without)
    less = [one for one in sched.OPTIONAL_RAW_TRACEPOINTS if one not in there]
    missing = f" (without {', '.join(less)}: less certain where daemons are busy)" if less else ""
    return host.Check(name, ok=True, needed=False, found=f"type information and tracepoints are there{missing}")


def _binary_checks(targets: Targets) -> Iterator[host.Check]:
    for warning in targets.warnings:
        yield host.Check(
            "functions", ok=False, needed=False, found=warning, remedy="phases fall back to kernel evidence"
        )


def _engine_checks(engine: Engine) -> Iterator[host.Check]:
    versions = f"{engine.version} (API {engine.api_version}, {engine.go_version})"
    yield host.Check("engine", ok=True, needed=True, found=f"{versions} at {engine.docker_host}, pid {engine.pid}")
    yield host.Check(
        "containerd",
        ok=engine.containerd_pid is not None,
        needed=True,
        found=f"{engine.components.get('containerd', '')} at {engine.containerd_address}, pid {engine.containerd_pid}"
        if engine.containerd_pid is not None
        else f"nobody in view listens at {engine.containerd_address}",
        remedy="" if engine.containerd_pid is not None else "run on the engine's host, in its pid namespace",
    )
    yield host.Check("storage driver", ok=True, needed=False, found=f"{engine.storage_driver} in {engine.data_root}")


def _can_print_marks() -> bool:
    return sys.stdout.isatty() and (sys.stdout.encoding or "").lower().startswith("utf")
