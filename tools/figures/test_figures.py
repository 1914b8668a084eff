"""Rows, ratios, the chart's bars, and the records of steps."""

import json
import shutil
import sys
from itertools import chain

import click
import pytest

from tests.support.cli import run_python
from tools.figures import record
from tools.figures import rows as rows_module
from tools.figures.chart import divide_median
from tools.figures.pages import build_page, build_readme
from tools.figures.record import FOLDER, ROOT, Figures, Record, add_files, find_letter
from tools.figures.rows import ROWS, Row, conditions_of, headlines, newest, shorten
from tools.figures.running import Step, run_step
from tools.figures.steps import FLEET, Steps
from tools.figures.tokens import FIELDS, read_result
from tools.gpu_figures import Place
from tools.gpu_stub.starts import CASES


def _bench(ours, theirs, condition="from warm", metric="first_token_s"):
    sides = [[{"condition": condition, "rounds": [{metric: value} for value in values]}] for values in (ours, theirs)]
    return {"sides": [{"name": name, "conditions": each} for name, each in zip("AB", sides, strict=True)]}


def _record(machine, date, result, code=0):
    return {
        "machine": machine,
        "steps": {"start": {"moment": date, "usable_cores": 2, "command": "", "exit_code": code, "result": result}},
    }


@pytest.fixture
def folder(tmp_path):
    shutil.copy(FOLDER / "machines.json", tmp_path)
    return tmp_path


def test_a_row_has_medians_ranges_and_the_ratios_of_the_rounds():
    row = Row("first token", "`vllm serve`", "start")
    assert row.cells(_bench([4.0, 5.0, 6.0], [40.0, 25.0, 30.0])) == (
        "5.00 s (4.00–6.00)",
        "30.0 s (25.0–40.0)",
        "0.20 (0.10–0.20)",
        "3",
    )


def test_sides_with_other_numbers_of_rounds_have_the_ratio_of_their_medians():
    assert Row("", "", "").cells(_bench([1.0, 2.0, 3.0], [4.0]))[2:] == ("0.50", "3 and 1")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4712, "0.47"), (4.861, "4.86"), (30.26, "30.3"), (107.9, "108"), (10570.0, "10,570"), (0.0, "0")],
)
def test_three_digits_are_shown(value, text):
    assert shorten(value) == text


def test_rounds_are_found_in_the_json_of_all_tools():
    began = {"healthy": 9.0, "answer": 10.0}
    starts = {"cases": {"eager, later": {"plain": [began], "ours": [began]}}}
    assert conditions_of(starts, 0) == {"eager, later": [{**began, "healthy_s": 9.0, "first_token_s": 10.0}]}
    swaps = {"ways": {"sleep, level 1": {"swaps_s": [0.4]}, "by hand, level 1": {"swaps_s": [0.5]}, "stop": {}}}
    assert conditions_of(swaps, 1) == {"level 1": [{"swap_s": 0.5}]}
    pods = {"cases": {"eager, volume": {"later": [began], "ours": [began]}, "eager, first": {"ours": []}}}
    assert [[*conditions_of(pods, side)] for side in range(3)] == [["eager, volume"], [], ["eager, volume"]]


def test_a_run_from_before_a_row_is_not_shown_in_it(folder, monkeypatch):
    rows = tuple(
        Row(name, "", "start", (("from warm", name),), is_headline=True) for name in ("first_token_s", "processor_s")
    )
    monkeypatch.setattr(rows_module, "ROWS", {"Start of vLLM": rows})
    (folder / "a.json").write_text(json.dumps(_record("A", "2126-01-01", _bench([1.0], [2.0]))))
    figures = Figures(folder)
    assert [shown.row.label for shown in newest(figures, "Start of vLLM")] == ["first_token_s"]
    assert [shown.row.label for shown in headlines(figures, are_of_gpu=False)] == ["first_token_s"]


def test_every_stored_run_names_its_cores_and_so_does_every_table(folder, monkeypatch):
    records = [json.loads(path.read_text()) for path in FOLDER.glob("*-*.json")]
    assert [step for each in records for step in each["steps"].values() if step["usable_cores"] < 1] == []
    monkeypatch.setattr(
        rows_module, "ROWS", {**dict.fromkeys(ROWS, ()), "Start of vLLM": (Row("", "", "start", is_headline=True),)}
    )
    (folder / "a.json").write_text(json.dumps(_record("A", "2126-01-01", _bench([1.0], [2.0]))))
    assert "| 2 cores, 2126-01-01 |" in build_readme(Figures(folder))
    assert "| A, 2 cores, 2126-01-01 |" in build_page(Figures(folder))


def test_the_newest_run_that_passed_is_shown(folder, monkeypatch):
    monkeypatch.setitem(ROWS, "Start of vLLM", (Row("first token", "`vllm serve`", "start"),))
    runs = [("A", "2126-01-02", 0), ("A", "2126-01-01", 0), ("B", "2126-01-03", 0), ("C", "2126-01-04", 1)]
    for machine, date, code in runs:
        (folder / f"{machine}-{date}.json").write_text(json.dumps(_record(machine, date, _bench([1.0], [2.0]), code)))
    figures = Figures(folder)
    assert [(run.machine, run.date) for _, run in newest(figures, "Start of vLLM")] == [("B", "2126-01-03")]


_CHANGELOG = "## [Unreleased]\n" + "".join(f"## [0.{each}.0] - 2026-01-0{each}\n" for each in (4, 3, 2, 1))


def test_figures_say_that_they_are_older_than_the_release_and_go_two_releases_later(folder):
    (folder / "CHANGELOG.md").write_text(_CHANGELOG)
    for day, machine in enumerate("ABCD", start=1):
        written = _record(machine, f"2026-01-0{day}", _bench([1.0], [2.0]))
        (folder / f"{day}.json").write_text(json.dumps(written))
    figures = Figures(folder, folder / "CHANGELOG.md")
    ages = [figures.describe_age(run.date) for run in figures.runs_of("start")]
    assert ages == ["2026-01-04", "2026-01-03, before 0.4.0", "2026-01-02, before 0.4.0"]


def test_the_page_shows_the_rows_of_readme():
    figures = Figures()
    on_page = [shown for section in ROWS for shown in newest(figures, section)]
    readme = [shown for are_of_gpu in (True, False) for shown in headlines(figures, are_of_gpu=are_of_gpu)]
    assert readme
    assert [shown for shown in readme if shown not in on_page] == []


@pytest.mark.parametrize("year", ["2026", "2126"], ids=["before the release", "since"])
def test_all_headlines_are_of_the_machine_with_most_of_them(folder, monkeypatch, year):
    """Otherwise a reader would compare figures of different machines."""
    rows = (Row("a", "", "start", is_headline=True), Row("b", "", "next", is_headline=True), Row("c", "", "next"))
    monkeypatch.setattr(rows_module, "ROWS", {"Start of vLLM": rows})
    steps_of = {"A": ("start", "next"), "B": ("start", "next"), "C": ("start",), "D": ("start",)}
    for machine, steps in steps_of.items():
        date = f"{'2126' if machine == 'D' else year}-11-2{ord(machine) - ord('@') + 4}"
        found = _record(machine, date, _bench([1.0], [2.0]))
        (folder / f"{machine}.json").write_text(
            json.dumps(found | {"steps": dict.fromkeys(steps, found["steps"]["start"])})
        )
    shown = headlines(Figures(folder), are_of_gpu=False)
    expected = [("a", "B"), ("b", "B")] if year == "2126" else [("a", "D")]
    assert [(row.label, run.machine) for row, run in shown] == expected
    assert headlines(Figures(folder), are_of_gpu=True) == []


def test_a_bar_is_as_long_as_the_figure_of_the_table():
    phases = [{"imports": 1.0, "first token": 1.0}, {"imports": 2.0, "first token": 1.0}, {"imports": 3.0}]
    rounds = [{"first_token_s": total, "phases_s": each} for total, each in zip((2.0, 3.0, 5.0), phases, strict=True)]
    divided = divide_median(rounds)
    assert divided == {"imports": pytest.approx(2.0), "first token": pytest.approx(1.0)}
    assert divide_median([{"healthy_s": 6.0, "first_token_s": 7.0}]) == {"server": 6.0, "first token": 1.0}


def test_a_new_machine_gets_the_next_letter_and_keeps_it(folder, monkeypatch):
    monkeypatch.setattr(record, "cpu_model", lambda: "a processor of 2031")
    path = folder / "machines.json"
    known = json.loads(path.read_text())
    assert find_letter(path) == find_letter(path) == chr(ord(max(known)) + 1)
    assert json.loads(path.read_text())[find_letter(path)]["processor"] == "a processor of 2031"


def test_a_step_that_fails_later_does_not_replace_its_figures(folder):
    written = Record(folder)
    entry = {"name": "start", "command": f"{ROOT}/x", "exit_code": 0, "result": {"a": 1 / 3, "summary": 1}}
    written.add(entry, folder)
    written.add({**entry, "exit_code": 1, "result": None}, folder)
    step = json.loads(written.path.read_text())["steps"]["start"]
    assert (step["command"], step["result"]) == ("ROOT/x", {"a": 0.33333})
    assert Record(folder).has_passed("start")


def test_every_row_shows_a_step_and_a_case_of_it(tmp_path):
    (tmp_path / "python").touch()
    of_gpu = {step.name: step for step in Place(tmp_path, tmp_path, tmp_path, is_stand_in=False).steps(1)}
    names = {step.name for step in Steps(ROOT, tmp_path)}
    rows = [*chain.from_iterable(ROWS.values())]
    assert {row.step for row in rows} - names - of_gpu.keys() == set()
    assert names - {row.step for row in rows} == {FLEET}, "docs/fleet.md shows this step"
    cases = {row.series[0][0] for row in rows if ", " in row.series[0][0]}
    assert cases <= CASES.keys() | {case.first_name for case in CASES.values()}


_ENTRY = {"name": "GPU, eager", "command": "", "outcome": "passed", "exit_code": 0, "result": {"cases": {}}}


@pytest.fixture
def source(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


def _add(source, target, proof):
    add_files(source, target, proof)
    return Figures(target).runs_of("GPU, eager")


def test_one_command_adds_what_an_interrupted_run_on_a_gpu_has_written(folder, source, tmp_path_factory, monkeypatch):
    """A step that failed does not replace the same day's figures. A later run adds to an earlier one."""
    gpus = ["NVIDIA B300, 294912 MiB, driver 590.1"]
    monkeypatch.setattr(record, "describe_machine", lambda python: {"gpus": gpus})
    proof = tmp_path_factory.mktemp("proof") / "proof.json"
    Record(source, has_gpu=True).add(_ENTRY, source)
    (source / proof.name).write_text("shown")
    [run] = _add(source, folder, proof)
    assert json.loads((folder / "machines.json").read_text())[run.machine]["processor"] == "one NVIDIA B300"
    assert proof.read_text() == "shown"
    later = Record(source, has_gpu=True)
    later.add({**_ENTRY, "exit_code": 1}, source)
    later.add({**_ENTRY, "name": "GPU, swaps"}, source)
    assert _add(source, folder, proof) == [run]
    assert [each.machine for each in Figures(folder).runs_of("GPU, swaps")] == [run.machine]


def test_figures_of_a_stand_in_and_an_empty_folder_are_refused(folder, source):
    with pytest.raises(click.ClickException, match="has no JSON file of figures"):
        add_files(source, folder)
    Record(source, runs_kernels=False).add(_ENTRY, source)
    before = {path: path.read_text() for path in folder.iterdir()}
    with pytest.raises(click.ClickException, match="stand-in"):
        add_files(source, folder)
    assert {path: path.read_text() for path in folder.iterdir()} == before


def test_a_machine_of_the_same_letter_must_be_the_same(folder, source, monkeypatch):
    for name, place in (("A100", folder), ("B200", source)):
        monkeypatch.setattr(record, "describe_machine", lambda python, name=name: {"gpus": [f"NVIDIA {name}, x"]})
        Record(place, has_gpu=True).add(_ENTRY, place)
    with pytest.raises(click.ClickException, match="another machine"):
        add_files(source, folder)


def test_with_a_default_peer_neither_side_is_eager(tmp_path):
    steps = {step.name: " ".join(step.words) for step in Steps(ROOT, tmp_path)}
    compiled = {name for name, words in steps.items() if "--enforce-eager" not in words}
    assert {"start, compiled", "warm start, compiled", "tokens, vLLM engine"} <= compiled
    assert steps["first start, eager"].count("--enforce-eager") == 2


def test_a_round_counts_only_if_no_request_has_failed():
    numbers = dict.fromkeys(FIELDS.values(), 2.5)
    assert read_result({**numbers, "completed": 8}, 8) == dict.fromkeys(FIELDS, 2.5)
    with pytest.raises(click.ClickException, match="5 of 8 requests failed"):
        read_result({**numbers, "completed": 3}, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_sides_are_measured_with_vllms_client(tmp_path):
    """One server is frozen while the other one is measured."""
    vllm, model = ROOT / ".peers" / "vllm" / "bin" / "vllm", ROOT / ".peers" / "model"
    own = f"{sys.executable} -m vllm_cli serve {model} --engine embedded"
    words = ("--vllm", vllm, "--model", model, "--rounds", "1", "--concurrency", "1,4", "--max-tokens", "8")
    words += ("--cmd", own, "--cmd", f"{own} --max-num-seqs 2", "--json", tmp_path / "result.json")
    script = "from tools.figures.tokens import main; main()"
    done = run_python(script, *map(str, words), cwd=ROOT, timeout_s=800)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    for side in range(2):
        conditions = conditions_of(result, side)
        assert list(conditions) == ["1 at once", "4 at once"]
        figures = ("output_tokens_per_s", "processor_ms_per_token")
        assert all(each[name] > 0 for rounds in conditions.values() for each in rounds for name in figures)


@pytest.mark.thorough
def test_a_real_start_is_recorded_with_its_rounds(folder):
    words = (sys.executable, "-m", "vllm_cli", "bench", "startup", "--rounds", "1", "--json", "{result}")
    model = str(ROOT / ".peers" / "model")
    entry = run_step(Step("start", (*words, *(("--model", model) if (ROOT / ".peers").exists() else ())), 120), 120)
    written = Record(folder)
    written.add(entry, folder)
    figures = Figures(folder)
    [run] = figures.runs_of("start")
    [[measured]] = conditions_of(run.result, 0).values()
    assert 0 < measured["healthy_s"] < measured["first_token_s"]
    assert "summary" not in written.path.read_text()
