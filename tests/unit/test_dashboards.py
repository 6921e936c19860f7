# SPDX-License-Identifier: Apache-2.0
"""The dashboards' files: generated from what scripts/dashboards defines, understood by Grafana's model, linked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.generate import decode, documents, encode

from dashboards import frame, live, picture
from observe.__main__ import main
from observe.resources import folder

SOURCE = folder("dashboards")
FILES = sorted(SOURCE.glob("grafana/*.json"))
#: What Grafana fills in itself.
BUILT_IN = {"datasource", "__rate_interval", "__range", "__url_time_range", "__value"}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def unit_of(panel: dict[str, Any]) -> str:
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    return defaults.get("unit") or panel["options"]["yAxis"]["unit"]


def test_the_files_are_what_the_definitions_make():
    assert {path.name: path.read_text() for path in FILES} == documents()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_grafanas_model_keeps_every_key(path):
    # Unknown keys vanish in the model, so a typo would show here.
    assert json.loads(encode(decode(path.read_text()))) == read(path)


@pytest.mark.parametrize("where", ["panel", "target", "variable"])
def test_the_model_drops_what_it_does_not_know(where):
    document = read(FILES[0])
    first = next(live.panels(document))
    place = {"panel": first, "target": first["targets"][0], "variable": document["templating"]["list"][1]}[where]
    place["tilte"] = "a typo"
    assert json.loads(encode(decode(json.dumps(document)))) != document


def test_the_dashboards_have_stable_names():
    assert [read(path)["uid"] for path in FILES] == sorted(frame.UIDS)
    assert all(path.stem == read(path)["uid"] for path in FILES)
    assert len({read(path)["title"] for path in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_in_which_unit(path):
    for panel in live.panels(read(path)):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert unit_of(panel), panel["title"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_asks_the_chosen_prometheus_for_the_chosen_hosts(path):
    document = read(path)
    variables = {variable["name"] for variable in document["templating"]["list"]}
    assert {"datasource", "instance"} <= variables
    for panel, target in live.targets(document):
        assert panel["datasource"]["uid"] == target["datasource"]["uid"] == "${datasource}"
        used = {match[0] or match[1] for match in live._VARIABLE.findall(target["expr"])}
        assert used <= variables | BUILT_IN, panel["title"]
        # What the rules recorded of the whole fleet has no hosts any more.
        fleet = re.search(r"job_operation\w*:", target["expr"])
        assert fleet or '=~"$instance"' in target["expr"], panel["title"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_are_numbered_and_do_not_overlap(path):
    document = read(path)
    parts = [*document["panels"], *(inner for row in document["panels"] for inner in row.get("panels") or ())]
    assert sorted(part["id"] for part in parts) == list(range(1, len(parts) + 1))
    cells = [
        (x, y)
        for panel in document["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_lead_to_dashboards_that_exist(path):
    document = read(path)
    assert [(link["type"], link["tags"]) for link in document["links"]] == [("dashboards", [frame.TAG])]
    assert document["tags"] == [frame.TAG]
    assert set(re.findall(r"/d/([\w-]+)", path.read_text())) <= set(frame.UIDS)


def test_a_host_of_the_fleet_opens_its_dashboard():
    (fleet,) = (path for path in FILES if path.stem == "observe-fleet")
    assert "/d/observe-host?" in fleet.read_text()


def test_the_provider_reads_where_the_readme_says():
    provider = yaml.safe_load((SOURCE / "provisioning" / "dashboards" / "observe.yaml").read_text())
    (one,) = provider["providers"]
    assert f"`{one['options']['path']}/`" in (SOURCE / "README.md").read_text()


# observe dashboards ----------------------------------------------------------------------------------------


def test_the_command_writes_this_versions_files(tmp_path, capsys):
    target = tmp_path / "new" / "folder"
    assert main(["dashboards", "-o", str(target)]) == 0
    written = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert written == {path.relative_to(SOURCE): path.read_bytes() for path in SOURCE.rglob("*") if path.is_file()}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"observe: {len(written)} files in {target}; its README.md says where they go\n"


def test_the_command_replaces_another_versions_files_and_keeps_what_is_not_ours(tmp_path):
    (tmp_path / "grafana").mkdir()
    ours, theirs = tmp_path / "grafana" / FILES[0].name, tmp_path / "grafana" / "theirs.json"
    ours.write_text("old")
    theirs.write_text("kept")
    assert main(["dashboards", "-o", str(tmp_path)]) == 0
    assert ours.read_bytes() == FILES[0].read_bytes()
    assert theirs.read_text() == "kept"


def test_the_command_says_where_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["dashboards", "-o", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


# Expressions as Grafana fills them in ----------------------------------------------------------------------


def test_variables_are_filled_in_all_their_forms():
    text = 'a{b=~"$b", c="${c:regex}"}[$__range] ${c} $d'
    assert live.fill(text, {"b": "1", "c": "2", "__range": "5m"}) == 'a{b=~"1", c="2"}[5m] 2 $d'


def test_legends_name_labels():
    series = live.Series({"operation": "start", "network": "host"}, ())
    assert live.legend({"legendFormat": "{{operation}} by {{ network }}{{nothing}}"}, series) == "start by host"
    assert live.legend({"legendFormat": "p99"}, series) == "p99"
    assert live.legend({}, series) == "network=host, operation=start"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "s", "123 ms"),
        (75, "s", "1.25 min"),
        (12e-6, "s", "12 µs"),
        (0, "s", "0 s"),
        (0.0523, "percentunit", "5.23%"),
        (0, "percentunit", "0%"),
        (3 * 2**20, "bytes", "3 MiB"),
        (2419, "short", "2.42 K"),
        (713, "short", "713"),
        (1.5, "ops", "1.5 ops/s"),
        (float("nan"), "s", "-"),
    ],
)
def test_the_picture_writes_numbers_with_their_units(value, unit, text):
    assert picture.words(value, unit) == text


def test_the_picture_knows_every_unit_and_kind_of_panel():
    for path in FILES:
        for panel in live.panels(read(path)):
            assert panel["type"] in picture._KINDS
            overrides = panel.get("fieldConfig", {}).get("overrides") or ()
            units = {item["value"] for one in overrides for item in one["properties"] if item["id"] == "unit"}
            assert {unit_of(panel), *units} <= set(picture._SCALES), panel["title"]
