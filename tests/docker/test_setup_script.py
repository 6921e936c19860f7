# SPDX-License-Identifier: Apache-2.0
"""scripts/setup never puts an engine beside or in place of one that is there, and starts no service.

It runs in mount and pid namespaces of its own, where /usr is a copy that the test changes and apt-get writes down
what it was asked for.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts" / "setup"

# A machine without an engine: the preparation of each case then puts something on it.
MACHINE = """
set -e
mount -t overlay -o lowerdir=/usr,upperdir=$PLACE/upper,workdir=$PLACE/work overlay /usr
mount -t tmpfs tmpfs /run
rm -f $(type -ap dockerd) /usr/sbin/policy-rc.d
cat >/usr/bin/apt-get <<'END'
#!/bin/sh
echo "$@" >>$PLACE/asked
case "$*" in *install*) /usr/sbin/policy-rc.d; echo "services: $?" >>$PLACE/asked; exit $APT_EXIT ;; esac
END
cat >/usr/bin/dpkg-query <<'END'
#!/bin/sh
for last; do :; done
[ "$last" = "$INSTALLED" ] && echo installed
END
chmod 755 /usr/bin/apt-get /usr/bin/dpkg-query
"""
BUSYBOX_AND_IPTABLES = "for p in busybox iptables; do ln -sf /bin/true /usr/bin/$p; done\n"
NO_BUSYBOX = "rm -f $(type -ap busybox)\n"


def setup(tmp_path: Path, preparation: str, installed: str = "", apt_exit: int = 0) -> tuple[int, str]:
    """Exit code of `setup engine` after `preparation`, and what apt-get was asked."""
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    script = f"{MACHINE}{preparation}\n{SETUP} engine; code=$?; [ ! -e /usr/sbin/policy-rc.d ] && exit $code || exit 99"
    result = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private", "bash", "-c", script],
        env={**os.environ, "PLACE": str(tmp_path), "INSTALLED": installed, "APT_EXIT": str(apt_exit)},
        check=False,
        capture_output=True,
        text=True,
    )
    asked = tmp_path / "asked"
    return result.returncode, asked.read_text() if asked.exists() else ""


def test_a_machine_without_an_engine_gets_one_that_is_not_started(tmp_path: Path) -> None:
    code, asked = setup(tmp_path, BUSYBOX_AND_IPTABLES)
    assert code == 0
    assert asked.splitlines()[1].endswith("install -y --no-install-recommends --no-remove docker.io")
    assert asked.splitlines()[2] == "services: 101"


@pytest.mark.parametrize("package", ["docker-ce", "containerd.io", "moby-engine"])
def test_an_installed_engine_package_forbids_another(tmp_path: Path, package: str) -> None:
    assert setup(tmp_path, BUSYBOX_AND_IPTABLES, installed=package) == (0, "")


@pytest.mark.parametrize(
    "sign",
    [
        "ln -s /bin/true /usr/sbin/dockerd",
        "touch /run/docker.sock",
        "cp /bin/sleep $PLACE/dockerd; $PLACE/dockerd 60 &",
    ],
    ids=["program", "socket", "process"],
)
def test_a_sign_of_an_engine_forbids_another(tmp_path: Path, sign: str) -> None:
    assert setup(tmp_path, BUSYBOX_AND_IPTABLES + sign) == (0, "")


def test_what_else_is_missing_comes_also_beside_an_engine(tmp_path: Path) -> None:
    code, asked = setup(tmp_path, BUSYBOX_AND_IPTABLES + NO_BUSYBOX, installed="docker-ce")
    assert code == 0
    assert asked.splitlines()[1].endswith("--no-remove busybox-static")


def test_a_failed_installation_is_an_error_and_services_may_start_again(tmp_path: Path) -> None:
    code, asked = setup(tmp_path, BUSYBOX_AND_IPTABLES, apt_exit=100)
    assert code == 1
    assert "docker.io" in asked
