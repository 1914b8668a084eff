"""One JSON file has all steps, including failed and overlong steps. No process of a step is left."""

import json
import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from startup.vllm.patches.graphs.graph_proof import RESULT
from tests.support.peer_vllm import ROOT
from tests.support.waiting import is_gone, wait_until
from tools.figures import running
from tools.figures.running import Step, read_result, run_step
from tools.gpu_figures import Place, choose, main


def _python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code, "{result}"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs these steps instead of the real ones, and returns the steps of the JSON file."""

    def run(*given: Step, code: int = 0) -> dict[str, Any]:
        monkeypatch.setattr(Place, "steps", lambda place, rounds: given)
        done = CliRunner().invoke(main, ["--folder", str(tmp_path), "--vllm", str(tmp_path), "--stand-in"])
        assert done.exit_code == code, done.output
        [path] = tmp_path.glob("*-*.json")
        return json.loads(path.read_text())["steps"]

    return run


def test_each_step_has_an_entry_with_its_result(run):
    writes = "import sys; open(sys.argv[1], 'w').write('{\"healthy\": 1}')"
    given = [Step("writes", _python(writes), 60), Step("fails", _python("import sys; sys.exit(3)"), 60)]
    written = run(*given, Step("takes too long", _python(""), 9999, 9999), code=1)
    assert {name: (each["exit_code"], each["result"]) for name, each in written.items()} == {
        "writes": (0, {"healthy": 1}),
        "fails": (3, None),
        "takes too long": (None, None),
    }
    assert written["takes too long"]["outcome"] == "left out: no time"


def test_an_ended_run_keeps_what_has_ended_and_a_later_one_adds_to_it(run, tmp_path):
    """As on a lent machine, whose time is over in the middle of a step."""
    script = tmp_path / "ended.py"
    script.write_text(_ENDED.format(words=["--folder", str(tmp_path), "--vllm", str(tmp_path), "--stand-in"]))
    with subprocess.Popen([sys.executable, script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        wait_until((tmp_path / "pid").exists, 300)
        process.terminate()
        assert process.wait(300) == 143
    wait_until(lambda: is_gone(int((tmp_path / "pid").read_text())))
    assert [*run(Step("third", _python(""), 60))] == ["first", "third"]


_ENDED = """
from pathlib import Path
from tools.gpu_figures import Place, main
from tools.figures.running import Step
def steps(place, rounds):
    yield Step("first", ("true",), 60)
    write = f"cd {{place.folder}}; echo $$ > new; mv new pid; exec sleep 100"
    yield Step("ended", ("sh", "-c", write), 60)
Place.steps = steps
main({words!r})
"""


@pytest.mark.parametrize("group", ["None", "0"], ids=["its group", "a group of its own"])
def test_a_step_that_takes_too_long_is_ended_with_its_processes(monkeypatch, tmp_path, group):
    """Servers that are left would hold the GPU's memory."""
    monkeypatch.setattr(running, "_LEAST_S", 0.0)
    pid = tmp_path / "pid"
    code = f"import pathlib, subprocess; child = subprocess.Popen(['sleep', '100'], process_group={group})"
    code += f"; pathlib.Path('{pid}').write_text(str(child.pid)); child.wait()"
    entry = run_step(Step("hangs", _python(code), 60, 0.0), 5.0)
    assert entry["outcome"] == "ended after 5 s"
    wait_until(lambda: is_gone(int(pid.read_text())))


def test_without_time_a_step_is_left_out():
    assert run_step(Step("late", _python("raise AssertionError"), 60), 1.0)["outcome"] == "left out: no time"


def test_the_counts_of_pytest_are_read(tmp_path):
    report = tmp_path / "report"
    report.write_text(
        '<?xml version="1.0"?><testsuites><testsuite tests="2" failures="1" errors="0" skipped="0">'
        '<testcase classname="a" name="b"><failure/></testcase><testcase classname="a" name="c"/>'
        "</testsuite></testsuites>"
    )
    assert read_result(report) == {"tests": 2, "failures": 1, "errors": 0, "skipped": 0, "failed": ["a::b"]}


def test_what_a_gpu_has_shown_is_stored_for_auto(run, tmp_path):
    shown = {"feature": "f", "state": "cold", "backend": "FLASH_ATTN", "capability": "9.0", "vllm": "0.33.0"}
    noted = f'<properties><property name="late_graphs-cold" value="{escape(json.dumps(shown))}"/></properties>'
    report = (
        '<testsuites><testsuite tests="2"><testcase name="a">{}</testcase><testcase name="b">{}<failure/></testcase>'
    )
    content = report.format(noted, noted.replace("&quot;f", "&quot;g")) + "</testsuite></testsuites>"
    run(Step("shows", _python(f"import sys; open(sys.argv[1], 'w').write({content!r})"), 60))
    assert json.loads((tmp_path / RESULT.name).read_text())["runs"] == [shown]


def _names(folder: Path, minutes: float, *words: str) -> list[str]:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").touch()
    done = CliRunner().invoke(main, ["--list", "--minutes", str(minutes), "--vllm", str(folder / "bin"), *words])
    assert done.exit_code == 0, done.output
    return [line.partition(" s  ")[2] for line in done.output.splitlines()]


def test_ten_minutes_have_late_graphs_and_first_and_later_starts(tmp_path):
    assert _names(tmp_path, 10) == ["late CUDA graphs, the default", "GPU, compiled", "GPU, eager"]


def test_45_minutes_have_the_largest_model_requests_and_swaps_too(tmp_path):
    names = _names(tmp_path, 45)
    assert names[:3] == _names(tmp_path, 10)
    assert {"GPU, eager, 8 billion parameters", "GPU, requests", "GPU, swaps", "late CUDA graphs, features"} <= {*names}
    assert "GPU, eager, 1.5 billion parameters" not in names


def test_without_time_for_the_largest_model_the_next_one_is_chosen(tmp_path):
    steps = [Step("8", (), 600, 300), Step("1.5", (), 600, 200), Step("more", (), 600, 30)]
    assert [step.name for step in choose(steps, 250)] == ["1.5", "more"]


def test_without_vllm_only_the_embedded_engine_is_measured(tmp_path):
    done = CliRunner().invoke(main, ["--list", "--vllm", str(tmp_path)])
    assert [line.partition(" s  ")[2] for line in done.output.splitlines()] == ["GPU, tests", "GPU, embedded: start"]


def test_load_formats_are_timed_if_their_package_is_installed(tmp_path):
    (tmp_path / "lib/python3.12/site-packages/fastsafetensors").mkdir(parents=True)
    names = " ".join(_names(tmp_path, 999))
    assert re.findall(r"--load-format (\w+)", names) == ["auto", "fastsafetensors"]


def test_the_stand_in_has_no_large_model(tmp_path):
    names = _names(tmp_path, 999, "--stand-in")
    assert "GPU, swaps" in names
    assert [name for name in names if "billion" in name] == []
