# SPDX-License-Identifier: Apache-2.0
"""Rules for every test: kernel and docker tests leave nothing behind, a skip has one reason and may be forbidden.

A test in tests/kernel, tests/docker, tests/prometheus or tests/browser gets the marker of its directory. If the
machine cannot run it, it is skipped with the reason; with CI=true or OBSERVE_NO_SKIP=1 every skip, whoever made it, is
a failure instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import promserver
import pytest
from leftovers import adopt_orphans, left_since, snapshot

TESTS = Path(__file__).parent
#: Detaching 39 tracepoints takes 3 s, also after SIGKILL.
GONE_SECONDS = 10


def pytest_configure(config: pytest.Config) -> None:
    adopt_orphans()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores it, and so would every program that the tests interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What observe keeps for the next time goes with the tests.
    cache = tempfile.TemporaryDirectory(prefix="observe-test-cache-")
    config.add_cleanup(cache.cleanup)
    os.environ["OBSERVE_CACHE"] = cache.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (kind := kind_of(item)) in _MISSING:
            item.add_marker(kind)


def pytest_runtest_setup(item: pytest.Item) -> None:
    kind = kind_of(item)
    reason = _MISSING[kind]() if kind in _MISSING else None
    if reason:
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        forbid_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        forbid_skip(report, collector.nodeid)
    return report


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a kernel, docker or prometheus test that leaves a process, mount, namespace, BPF object or watch behind."""
    if kind_of(request.node) not in {"kernel", "docker", "prometheus"}:
        yield
        return
    if "engine" in request.fixturenames:
        # It lives for the whole session, so it belongs to what was there before.
        request.getfixturevalue("engine")
    before = snapshot()
    yield
    left = left_since(before, GONE_SECONDS)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


def kind_of(item: pytest.Item) -> str:
    """The directory below tests/ that a test lies in: unit, kernel, docker, prometheus, browser."""
    return item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""


def forbid_skip(report: pytest.TestReport | pytest.CollectReport, name: str) -> None:
    """Turn a skip into a failure if this run must not skip."""
    if "true" not in os.environ.get("CI", "").lower() and os.environ.get("OBSERVE_NO_SKIP", "0") in ("", "0"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{name} was skipped, but CI=true or OBSERVE_NO_SKIP=1 forbids it: {reason}"


@cache
def kernel_missing() -> str | None:
    """Why BPF programs cannot be loaded here, None if they can."""
    if os.geteuid() != 0:
        return "BPF needs root: run it with sudo"
    if importlib.util.find_spec("bcc") is None:
        return "bcc is missing: apt-get install python3-bpfcc, and a virtual environment with --system-site-packages"
    if not Path("/sys/kernel/tracing/events").exists():
        return "tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing, or run `make test`"
    return None


@cache
def docker_missing() -> str | None:
    """Why a private dockerd cannot be started here, None if it can."""
    if os.geteuid() != 0:
        return "a private dockerd needs root: run it with sudo"
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    for program in ("dockerd", "iptables", "busybox", "unshare"):
        if shutil.which(program, path=path) is None:
            return f"{program} is missing: run `make test`, or scripts/setup engine"
    return None


@cache
def browser_missing() -> str | None:
    """Why no page can be looked at here, None if it can."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is missing: run `make test`, or scripts/setup dev"
    if shutil.which("chromium") is None:
        return "chromium is missing: run `make test`, or scripts/setup browser"
    return None


_MISSING = {
    "kernel": kernel_missing,
    "docker": docker_missing,
    "prometheus": promserver.missing,
    "browser": browser_missing,
}
