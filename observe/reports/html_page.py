# SPDX-License-Identifier: Apache-2.0
"""A page that is one file: its styles, scripts and data are inside, and it may load nothing.

Text from outside is made harmless wherever a template prints it, and its data stand in blocks that no browser runs.
"""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from observe import __version__
from observe.reports import words
from observe.reports.terminal import Page, wall_time

_FOLDER = Path(__file__).parent / "page"
_PAGE = Page()


def render(template: str, **context: Any) -> bytes:
    """A file of page/templates, filled in; UTF-8."""
    style = _asset("timeline.css", "page.css")
    script = _asset("timeline.js", "page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (
        _environment()
        .get_template(template)
        .render(**context, style=style, script=script, policy=policy, tool_version=__version__)
    )
    return f"{text.strip()}\n".encode()


def embedded(data: Any) -> Markup:
    """JSON for a data block: no letter in it can end the block, and all are ASCII."""
    text = json.dumps(data, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - see above


@cache
def _asset(*names: str) -> Markup:
    return Markup("\n" + "\n".join((_FOLDER / name).read_text() for name in names))  # noqa: S704 - our own files


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=lambda value: "-" if value is None else _PAGE.duration(value),
        some_duration=lambda value: _PAGE.duration(value) if value else "",
        percent=words.percent,
        number=lambda value: f"{value:,}",
        wall_time=wall_time,
        embedded=embedded,
        capitalize_first=lambda text: text[:1].upper() + text[1:],
        last=lambda phase: phase.rpartition(".")[2],
        within=lambda phase: phase.partition(".")[2],
    )
    environment.globals.update(words=words)
    return environment


def _harmless(value: Any) -> Any:
    """What a template prints: text as letters that print, whatever it was; markup of the templates as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else _PAGE.safe(value)
