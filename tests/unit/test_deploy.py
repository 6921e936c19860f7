# SPDX-License-Identifier: Apache-2.0
"""deploy/: each file by the checker of its format, and all of them by the same capabilities."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import kubernetes_validate
import pytest
import yaml

from observe.commands import serve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
#: What tests/docker/test_deploy.py shows to be enough and not too much.
CAPABILITIES = {"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}
PORT = 9758


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists."""
    text = (DEPLOY / "observe.service").read_text()
    assert "ExecStart=/opt/observe/bin/observe serve" in text
    path = tmp_path / "observe.service"
    path.write_text(text.replace("/opt/observe/bin/observe", "/bin/true"))
    return path


def manifests() -> list[dict[str, object]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def manifest(kind: str) -> dict[str, object]:
    (found,) = (one for one in manifests() if one["kind"] == kind)
    return found


def container() -> dict[str, object]:
    (only,) = manifest("DaemonSet")["spec"]["template"]["spec"]["containers"]
    return only


def service() -> dict[str, object]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["observe"]


# systemd ---------------------------------------------------------------------------------------------------


def test_systemd_understands_the_unit(unit):
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_notices_a_misspelt_option(unit):
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPrivilges="))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "NoNewPrivilges" in done.stderr


def test_the_unit_is_hardened(unit):
    # 10 is no hardening at all, most services of a distribution are above 9; what remains is what BPF needs.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_unit_has_the_capabilities_it_needs_and_no_others():
    text = (DEPLOY / "observe.service").read_text()
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        (line,) = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
        assert set(line.split()) == CAPABILITIES


# Images ----------------------------------------------------------------------------------------------------


def test_compose_keeps_to_its_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_composes_checker_notices_a_misspelt_key(tmp_path):
    (tmp_path / "compose.yaml").write_text((DEPLOY / "compose.yaml").read_text().replace("cap_add:", "cap_ad:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*command, tmp_path / "compose.yaml"], capture_output=True, check=False).returncode != 0


def test_compose_has_the_capabilities_and_mounts_it_needs_and_no_others():
    ours = service()
    assert {f"CAP_{name}" for name in ours["cap_add"]} == CAPABILITIES
    assert ours["cap_drop"] == ["ALL"]
    assert ours["pid"] == "host"
    assert "privileged" not in ours
    host = [volume for volume in ours["volumes"] if volume.startswith("/")]
    assert host == ["/run:/run:ro", "/sys/kernel/tracing:/sys/kernel/tracing:ro"]


def test_compose_lets_its_prometheus_ask_by_the_name_it_uses():
    configuration = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["configs"]["prometheus"]["content"]
    targets = [
        target.partition(":")[0]
        for job in yaml.safe_load(configuration)["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    parser = argparse.ArgumentParser()
    serve.configure(parser)
    name, *options = service()["command"]
    assert name == serve.NAME
    assert parser.parse_args(options).allow_host == targets == ["observe"]


def test_compose_mounts_files_that_exist():
    for one in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        for volume in one["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), volume


def test_the_image_is_built_from_files_that_make_a_whole_wheel(tmp_path):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines
    for name in kept:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert "observe/_data/bpf/events.bpf.c" in names
    assert "observe/_data/dashboards/grafana/observe-overview.json" in names
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "observe"


def test_all_listen_on_one_port():
    texts = [path.read_text() for path in DEPLOY.iterdir() if path.name != "README.md"]
    texts.append((ROOT / "dashboards" / "prometheus" / "prometheus.yml").read_text())
    assert {int(port) for text in texts for port in re.findall(r"\b97\d\d\b", text)} == {PORT}


# Kubernetes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_the_manifests_keep_to_kubernetes_schemas(version):
    for one in manifests():
        kubernetes_validate.validate(one, version, strict=True)


def test_kubernetes_checker_notices_a_misspelt_key():
    wrong = manifest("DaemonSet")
    wrong["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_the_daemon_set_has_the_capabilities_and_mounts_it_needs_and_no_others():
    pod = manifest("DaemonSet")["spec"]["template"]["spec"]
    security = container()["securityContext"]
    assert {f"CAP_{name}" for name in security["capabilities"]["add"]} == CAPABILITIES
    assert security["capabilities"]["drop"] == ["ALL"]
    assert not security["privileged"]
    assert not security["allowPrivilegeEscalation"]
    assert pod["hostPID"]
    assert "hostNetwork" not in pod
    host = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert host == {"run": "/run", "tracing": "/sys/kernel/tracing"}
    mounts = {mount["name"]: mount for mount in container()["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert all(mounts[name]["readOnly"] and mounts[name]["mountPath"] == path for name, path in host.items())


def test_the_manifests_find_each_other():
    template = manifest("DaemonSet")["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert manifest("DaemonSet")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    monitor = yaml.safe_load((DEPLOY / "kubernetes-servicemonitor.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"] == manifest("Service")["metadata"]["labels"]
    assert monitor["spec"]["endpoints"][0]["port"] == manifest("Service")["spec"]["ports"][0]["name"]
    (port,) = container()["ports"]
    assert manifest("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"]) == str(PORT)


@pytest.mark.parametrize(
    ("probe", "path"), [("liveness", "/healthz"), ("readiness", "/readyz"), ("startup", "/healthz")]
)
def test_the_probes_ask_what_serve_answers(probe, path):
    assert container()[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "metrics"}
