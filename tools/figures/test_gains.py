"""What parts of a start save, from stored rounds to the page."""

import json
import shutil
import sys

import pytest
from click.testing import CliRunner

from tools.figures import leave_out
from tools.figures.gains import Part, all_parts, describe, gains_of, reasons_for, step_name
from tools.figures.leave_out import build_step, choose, leave_out_impossible
from tools.figures.record import FOLDER, Figures, Record
from tools.figures.running import Step, run_step

_LATER = "CPU, eager, later"
_FIRST = "CPU, eager, first"


def _rounds(*pairs):
    return [{"first_token_s": first_token_s, "processor_s": processor_s} for first_token_s, processor_s in pairs]


def _figures(folder, **steps):
    """Figures with these steps: name of a part -> the rounds with and without it."""
    shutil.copy(FOLDER / "machines.json", folder)
    known = {"moment": "2126-01-02 03:04", "usable_cores": 2, "exit_code": 0}
    written = {
        step_name(name, _LATER): {**known, "result": {"with": with_it, "without": without}}
        for name, (with_it, without) in steps.items()
    }
    (folder / "a-2126-01-02.json").write_text(json.dumps({"machine": "A", "steps": written}))
    return Figures(folder)


@pytest.mark.parametrize(
    ("with_it", "expected"),
    [
        pytest.param([(9.0, 5.0), (9.0, 5.0), (5.0, 5.0)], "10 % of CPU, eager, later", id="time"),
        pytest.param(
            [(9.9, 4.5), (10.2, 4.5), (9.9, 4.5)], "10 % of the processor time of CPU, eager, later", id="cpu"
        ),
        pytest.param([(9.9, 4.9), (9.9, 5.1), (9.0, 5.0)], "no gain in CPU, eager, later", id="too little"),
    ],
)
def test_the_page_says_what_the_stored_rounds_show(tmp_path, with_it, expected):
    figures = _figures(tmp_path, planted=(_rounds(*with_it), _rounds(*[(10.0, 5.0)] * 3)))
    part = Part("planted", (_LATER,), "")
    gains = gains_of(part, figures)
    assert reasons_for(part, gains) == [expected]
    assert gains[0].is_enough == ("no gain" not in expected)


def test_a_promise_an_unmeasured_start_and_an_essential_hook_are_named(tmp_path):
    figures = _figures(tmp_path, planted=(_rounds((5.0, 4.0)), _rounds((10.0, 5.0))))
    part = Part("planted", (_LATER, _FIRST), "nothing is lost")
    [gain] = gains_of(part, figures)
    expected = ["50 % of CPU, eager, later", "not measured in CPU, eager, first", "promise: nothing is lost"]
    assert reasons_for(part, [gain]) == expected
    assert reasons_for(Part("whole", (), "", is_essential=True), []) == ["essential: it cannot be left out"]
    [row] = describe(part, [gain], figures)
    cells = ("planted", _LATER, "5.00; 10.0 s", "50 %", "4.00; 5.00 s", "20 %", "1", "A, 2 cores, 2126-01-02")
    assert row == cells


def test_parts_are_measured_where_they_gain_one_kind_of_start_after_the_other(tmp_path):
    parts = [Part("one", (_LATER, _FIRST), ""), Part("two", (_FIRST,), ""), Part("whole", (), "", is_essential=True)]
    chosen = [(start, part.name) for start, part in choose(parts, ())]
    assert chosen == [(_LATER, "one"), (_FIRST, "one"), (_FIRST, "two")]
    usual = choose([Part("kept", (), "no file is left")], ())
    assert [start for start, _ in usual] == [_LATER, "stand-in, compiled, later"]
    [choice] = choose(parts[1:], (_LATER,))
    step = build_step(choice, 3, ("python", "-m"), tmp_path)
    assert step.name == step_name("two", _LATER)
    assert step.words[-8:-2] == ("--start", _LATER, "--leave-out", "two", "--rounds", "3")


def test_a_build_that_is_not_installed_is_told_and_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leave_out.OnCpu, "python", tmp_path / "absent")
    assert [*leave_out_impossible(choose([Part("one", (_LATER,), "")], ()))] == []
    assert f"{_LATER}, without one: not measured, {tmp_path}/absent is missing" in capsys.readouterr().err


def test_a_release_without_a_part_is_not_measured():
    parts = all_parts()
    assert [parts["unused warm-ups"].is_for(release) for release in ((0, 32), (0, 33))] == [False, True]
    assert all(part.is_for((0, 32)) for part in (parts["cheap calls"], parts["lean imports"]))


@pytest.mark.parametrize("name", ["forks", "nosuch"], ids=["essential", "unknown"])
def test_what_no_start_can_leave_out_is_an_error(tmp_path, name):
    words = ("--json", str(tmp_path / "result"), "--start", _LATER, "--leave-out", name, "--homes", str(tmp_path))
    done = CliRunner().invoke(leave_out.main, [*words])
    assert (done.exit_code, f"has no part '{name}' that can be left out" in done.output) == (2, True), done.output


@pytest.mark.thorough
def test_real_starts_without_a_part_are_recorded(tmp_path):
    words = (sys.executable, "-m", "tools.figures.leave_out", "--json", "{result}", "--rounds", "1")
    given = ("--start", "embedded, eager, later", "--leave-out", "cached scans", "--homes", str(tmp_path / "homes"))
    name = step_name("cached scans", "embedded, eager, later")
    shutil.copy(FOLDER / "machines.json", tmp_path)
    entry = run_step(Step(name, (*words, *given), 240), 240, folder=FOLDER.parents[1])
    assert entry["exit_code"] == 0, entry
    Record(tmp_path).add(entry, tmp_path / "homes")
    [gain] = gains_of(all_parts()["cached scans"], Figures(tmp_path))
    for side in ("with", "without"):
        [seconds] = gain.seconds(side, "first_token_s")
        [processor_s] = gain.seconds(side, "processor_s")
        assert seconds > 0
        assert processor_s > 0
