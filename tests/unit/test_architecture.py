# SPDX-License-Identifier: Apache-2.0
"""Data flows one way: the imports of every module hold the direction that ARCHITECTURE.md draws."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import observe
from observe.correlate import stamps

PACKAGE = Path(observe.__file__).parent

#: From left to right; a module imports only from its left (and from its own room).
ROOMS = ("probes", "collectors", "recording", "correlate", "reports", "bench", "commands")
LEFT_OF = {room: set(ROOMS[:index]) for index, room in enumerate(ROOMS)}
#: export encodes the runs that reports show; exporter shows them live, with reports' rows and words. No report knows
#: either of them, nor do they know each other.
LEFT_OF["export"] = set(LEFT_OF["reports"])
LEFT_OF["exporter"] = LEFT_OF["reports"] | {"reports"}
LEFT_OF["commands"] |= {"export", "exporter"}
#: What notebooks import stands beside commands: it sees what reports see, reports, and the table of events of exports.
LEFT_OF["api"] = LEFT_OF["reports"] | {"reports", "export"}
#: Every room may use these; among themselves they may use what stands here.
COMMONS = {
    "errors": set(),
    "escape": set(),
    "inotify_words": set(),
    "resources": {"errors"},
    "model": set(),
    "engine": {"model", "errors", "resources"},
    "host": {"model", "errors", "resources", "engine"},
    "phases": {"model", "errors", "resources"},
}
#: Reports and exporter see runs: never what attaches or collects, though it stands on their left.
BLIND = {room: {"probes", "collectors"} for room in ("reports", "export", "exporter", "api")}

HEAVY = {"bcc", "pandas", "matplotlib", "docker", "pyinotify", "numpy"}


def imports(source: str, module: str, *, package: bool = False, top_only: bool = False) -> set[str]:
    """Absolute names of the modules (or names in modules) that the source of `module` imports."""
    found = set()
    for node in _nodes(ast.parse(source), top_only=top_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                base = ".".join([*parts[: len(parts) - node.level + package], *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def _nodes(tree: ast.AST, *, top_only: bool) -> Iterator[ast.AST]:
    """All nodes, or only those that run when the module is imported (not those for the type checker)."""
    for node in ast.iter_child_nodes(tree):
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, top_only=top_only)


def room_of(name: str) -> str | None:
    """`observe.reports.text` → reports; None for what is not ours or is the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "observe" and len(parts) > 1 else None


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """Every import of a module that goes against the direction, as text."""
    home = room_of(module)
    if home is None or home == "__main__":
        return []
    commons = set(COMMONS) | {"__version__"}
    allowed = COMMONS[home] if home in COMMONS else commons | LEFT_OF[home] - BLIND.get(home, set())
    targets = ((name, room_of(name)) for name in sorted(imports(source, module, package=package)))
    return [f"{module} imports {name}" for name, room in targets if room not in (None, home) and room not in allowed]


def modules() -> dict[str, Path]:
    """Name → file of everything in the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("observe", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def reachable(start: str) -> set[str]:
    """Every module that is imported, at the top of some module, once `start` is."""
    ours = modules()
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in ours:
            # A name in a module: the module itself.
            if name.startswith("observe."):
                waiting.append(name.rpartition(".")[0])
            continue
        waiting.append(name.rpartition(".")[0] or name)
        path = ours[name]
        waiting.extend(imports(path.read_text(), name, package=path.name == "__init__.py", top_only=True))
    return seen


@pytest.mark.parametrize("module", modules())
def test_every_module_imports_only_from_its_left(module):
    path = modules()[module]
    assert violations(path.read_text(), module, package=path.name == "__init__.py") == []


def test_every_room_has_its_place():
    rooms = {room_of(module) for module in modules()} - {None, "__main__"}
    assert rooms <= set(COMMONS) | set(LEFT_OF)


def test_whatever_decides_what_is_concluded_has_its_part_in_the_stamp():
    """Whatever is imported, directly or not, to conclude; but what only words errors, and the report around it."""
    exempt = {"observe.errors", "observe.reports.report"}
    ours = modules()
    seen: set[str] = set()
    waiting = ["observe.reports.assemble"]
    while waiting:
        name = waiting.pop()
        name = name if name in ours else name.rpartition(".")[0]
        if name in ours and name not in seen | exempt:
            seen.add(name)
            waiting += imports(ours[name].read_text(), name, package=ours[name].name == "__init__.py")
    assert len(seen) > 30
    assert {"observe.model", "observe.correlate.why.path", "observe.recording.reader", "observe.phases.causes"} <= seen
    places = [PACKAGE / name for name in stamps._DECIDES]
    assert [name for name in sorted(seen) if not {ours[name], *ours[name].parents} & {*places}] == []


@pytest.mark.parametrize("start", ["observe", "observe.__main__"])
def test_help_reaches_nothing_heavy(start):
    roots = {name.partition(".")[0] for name in reachable(start)}
    assert roots & {"typing", "argparse"}
    assert not roots & HEAVY


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("observe.model", "import observe.errors"),
        ("observe.probes.bad", "from observe.collectors import session"),
        ("observe.probes.bad", "from observe import recording"),
        ("observe.recording.bad", "def late():\n    from observe.reports import text"),
        ("observe.correlate.bad", "from observe.commands.report import run"),
        ("observe.reports.bad", "from observe.probes.attach import attach"),
        ("observe.reports.bad", "import observe.collectors.ring"),
        ("observe.reports.bad", "from ..exporter import page"),
        ("observe.exporter.bad", "from observe.commands import serve"),
        ("observe.exporter.bad", "from observe.export import otlp"),
        ("observe.export.bad", "from observe.exporter import live"),
        ("observe.reports.bad", "from observe.api import OpenRecording"),
        ("observe.api", "from observe.collectors import session"),
        ("observe.exporter.bad", "if True:\n    from observe.collectors import ring"),
        ("observe.phases.bad", "from observe.host import Host"),
    ],
)
def test_the_checker_finds_a_bad_import(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("observe.reports.good", "from observe.correlate import Correlator\nfrom observe import __version__"),
        ("observe.reports.good", "from . import text\nfrom .rows import timeline\nimport json"),
        ("observe.collectors.good", "from observe.probes import attach\nfrom observe.model import Event"),
        ("observe.commands.good", "from observe.exporter import page\nfrom observe.host import Host"),
    ],
)
def test_the_checker_accepts_the_direction(module, source):
    assert violations(source, module) == []


def test_the_checker_tells_what_runs_at_import_from_what_does_not():
    source = (
        "import json\ndef late():\n    import pandas\nif TYPE_CHECKING:\n    import docker\nclass A:\n    import bcc\n"
    )
    assert imports(source, "observe.x", top_only=True) == {"json", "bcc"}
    assert imports(source, "observe.x") == {"json", "pandas", "docker", "bcc"}


def test_relative_imports_are_resolved_from_modules_and_packages():
    assert imports("from . import text", "observe.reports.rows") == {"observe.reports.text"}
    assert imports("from . import text", "observe.reports", package=True) == {"observe.reports.text"}
    assert imports("from ..model import Run", "observe.reports.rows") == {"observe.model.Run"}
