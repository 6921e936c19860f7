# SPDX-License-Identifier: Apache-2.0
"""One browser for all tests; each test gets its own window, which may neither ask the network nor complain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leftovers import left_since, snapshot
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

#: A browser has many processes.
GONE_SECONDS = 10

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The distribution's; playwright brings none. Nothing of it may be left when it is closed.

    Not the session's: what it starts now and then would be found by tests that look for what they have left.
    """
    before = snapshot()
    with sync_playwright() as playwright:
        home = {**os.environ, "HOME": str(tmp_path_factory.mktemp("home"))}
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_OPTIONS, env=home)
        yield browser
        browser.close()
    assert left_since(before, GONE_SECONDS) == []


@pytest.fixture
def look(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page that was rendered; at the end of the test it must not have complained or asked for anything."""
    trouble: list[str] = []
    contexts = []

    def open_page(content: bytes, *, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
        file = tmp_path / f"page{len(contexts)}.html"
        file.write_bytes(content)
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts, offline=True
        )
        contexts.append(context)
        page = watched(context, trouble, lambda url: url == file.as_uri() or url.startswith("data:"))
        page.goto(file.as_uri())
        if scripts:
            settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page at an address; it must not complain, nor ask anybody else."""
    trouble: list[str] = []
    contexts = []

    def open_page(url: str, *, width: int = 1280, scheme: str = "light", paused: bool = False) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = watched(contexts[-1], trouble, lambda asked: asked.startswith(url))
        if paused:
            page.clock.install(time=0)
        page.goto(url)
        if paused:
            # Later than now, whatever that is.
            page.clock.pause_at(3_600_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def watched(context: BrowserContext, trouble: list[str], is_fine: Callable[[str], bool]) -> Page:
    """A window whose complaints, and requests for other than fine addresses, are trouble."""
    page = context.new_page()
    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if is_fine(request.url) else trouble.append(request.url))
    return page


def settle(page: Page) -> None:
    """Until what was asked for is drawn: a frame later."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
