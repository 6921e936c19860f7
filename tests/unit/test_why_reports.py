# SPDX-License-Identifier: Apache-2.0
"""`report --why`: critical path and causes in text, Markdown and JSON; what comes from a container stays harmless."""

from __future__ import annotations

import json
from dataclasses import replace

from made import HOSTILE, explained, made_report, made_run

from observe.__main__ import main
from observe.reports import RENDERERS, WHY, Page, Report, without_details
from observe.reports.why_rows import EVIDENCE, LARGEST, why_many, why_run

PROGRAMS = ("dockerd", "runc create", "dockerd")


def test_rows_are_the_largest_causes_with_their_largest_pieces_and_the_path_by_program() -> None:
    run = explained(made_run(3))
    why = why_run(run)
    assert why is not None
    assert len(why.causes) == LARGEST
    assert (why.others, why.others_ns) == (2, 2)
    assert why.causes[0].cause.id == "writes"
    assert len(why.causes[0].evidence) == EVIDENCE
    assert all(step.program == "runc create" for step in why.causes[0].evidence)
    assert [link.program for link in why.links] == list(PROGRAMS)
    assert sum(link.duration_ns for link in why.links) == run.duration_ns
    for link in why.links:
        time = link.time
        assert time.cpu_ns + time.runqueue_ns + sum(time.blocked_ns.values()) == link.duration_ns


def test_a_short_stay_elsewhere_is_told_with_what_is_around_it() -> None:
    run = explained(made_run(3))
    short = replace(run.path[5], program="sh", duration_ns=1)
    rest = replace(run.path[5], start_ns=run.path[5].start_ns + 1, duration_ns=run.path[5].duration_ns - 1)
    why = why_run(replace(run, path=(*run.path[:5], short, rest, *run.path[6:])))
    assert why is not None
    assert [link.program for link in why.links] == list(PROGRAMS)


def test_many_runs_are_percentiles_of_causes_and_a_run_without_one_counts_as_zero() -> None:
    runs = [explained(made_run(3, seed)) for seed in range(6)]
    runs[0] = replace(runs[0], causes=runs[0].causes[1:])
    (many,) = why_many([*runs, made_run(3)])
    assert (many.operation, many.runs) == ("start", 6)
    row = many.causes[0]
    assert (row.id, row.n) == ("writes", 5)
    assert 0 < row.p50_ns <= row.p90_ns


def test_text_says_why_in_numbers_and_words() -> None:
    text = WHY["text"](made_report(explained(made_run(3))), Page())
    assert "why start web took" in text
    assert "1. " in text
    assert "runc create: write waited" in text
    assert "runc create[5/51] asleep in write cgroup.procs (rcu_barrier), in start.phase_0" in " ".join(text.split())
    assert "what is known to help: do less (source: moby#1; risk: none)" in " ".join(text.split())
    assert "and 2 smaller ones" in text
    assert "critical path" in text
    assert max(map(len, text.splitlines())) <= Page().width


def test_markdown_says_the_same() -> None:
    text = WHY["markdown"](made_report(explained(made_run(3))), Page())
    assert "## Why start `web` took" in text
    assert "`runc create: write waited`" in text
    assert "### Critical path" in text


def test_many_runs_in_text_and_markdown() -> None:
    report = made_report(*(explained(made_run(3, seed)) for seed in range(6)))
    assert "why 6 times start took their time" in WHY["text"](report, Page())
    assert "| writes " in WHY["markdown"](report, Page())


def test_what_was_not_recorded_is_said_and_nothing_is_said_of_no_run() -> None:
    for form in ("text", "markdown"):
        assert "was not recorded" in WHY[form](made_report(made_run(3)), Page())
        assert WHY[form](made_report(), Page()) == ""


def test_what_a_container_says_is_harmless() -> None:
    run = explained(made_run(3, container_name=HOSTILE), HOSTILE)
    run = replace(run, path=tuple(replace(step, file=HOSTILE, call="write") for step in run.path))
    for form in ("text", "markdown"):
        text = WHY[form](made_report(run), Page())
        assert not {letter for letter in text if not letter.isprintable() and letter != "\n"}
    assert "<img" not in WHY["markdown"](made_report(run), Page()).replace("`", "\0").split("\0")[0]


def document(report: Report) -> dict[str, object]:
    return json.loads(RENDERERS["json"](report, Page()))["runs"][0]


def test_json_has_time_and_causes_always_and_the_path_if_it_is_asked_for() -> None:
    run = explained(made_run(3))
    report = made_report(run)
    whole = document(without_details(report, configuration=False, functions=False, path=True))
    assert len(whole["critical_path"]) == 12
    brief = document(without_details(report, configuration=False, functions=False, path=False))
    assert "critical_path" not in brief
    assert [set(cause) for cause in brief["causes"]] == [{"id", "text", "duration_ns", "remedy", "steps"}] * 7
    assert brief["causes"][0]["remedy"] == {"text": "do less", "source": "moby#1", "risk": "none"}
    time = brief["phases"][0]["time"]
    assert time["cpu_ns"] + time["runqueue_ns"] + sum(time["blocked_ns"].values()) == run.duration_ns
    assert "time" not in brief["phases"][1]
    assert not {"causes", "critical_path"} & document(made_report(made_run(3))).keys()


def test_the_command_adds_it_to_the_report(capsys) -> None:
    fixture = "tests/fixtures/why.observe"
    assert main(["report", "--why", fixture]) == 0
    text = capsys.readouterr().out
    assert text.count("why create ") == text.count("why start ") == 1
    assert text.index("why create") > text.index("unattributed")
    assert main(["report", fixture]) == 0
    assert "critical path" not in capsys.readouterr().out
    assert main(["report", "--why", "-f", "json", fixture]) == 0
    for run in json.loads(capsys.readouterr().out)["runs"]:
        assert sum(step["duration_ns"] for step in run["critical_path"]) == run["duration_ns"]
        assert sum(cause["duration_ns"] for cause in run["causes"]) == run["duration_ns"]
        for phase in run["phases"]:
            if phase["duration_ns"]:
                time = phase["time"]
                assert time["cpu_ns"] + time["runqueue_ns"] + sum(time["blocked_ns"].values()) == phase["duration_ns"]
