"""One JSON file has all steps, including failed and overlong steps. No process of a step is left."""

import json
import re
import sys
from html import escape
from pathlib import Path

from click.testing import CliRunner

from tests.support.waiting import is_gone, wait_until
from tools import gpu_figures
from tools.gpu_figures import Step, main, read_result, run_step, steps


def _python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code, "{result}"


def test_each_step_has_an_entry_with_its_result(monkeypatch, tmp_path):
    writes = "import sys; open(sys.argv[1], 'w').write('{\"healthy\": 1}')"
    given = [Step("writes", _python(writes), 60), Step("fails", _python("import sys; sys.exit(3)"), 60)]
    monkeypatch.setattr(gpu_figures, "steps", lambda *_: given)
    output = tmp_path / "figures.json"
    done = CliRunner().invoke(main, ["--json", str(output), "--vllm", str(tmp_path)])
    assert done.exit_code == 1, done.output
    written = json.loads(output.read_text())
    assert [(each["name"], each["exit_code"], each["result"]) for each in written["steps"]] == [
        ("writes", 0, {"healthy": 1}),
        ("fails", 3, None),
    ]
    assert "no step with vLLM" in written["left_out"]
    assert written["machine"]["packages"]["torch"]


def test_a_step_that_takes_too_long_is_ended_with_its_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_figures, "_LEAST_S", 0.0)
    pid = tmp_path / "pid"
    entry = run_step(Step("hangs", ("sh", "-c", f"sleep 100 & echo $! > {pid}; wait"), 60), 2.0)
    assert entry["outcome"] == "ended after 2 s"
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


def test_what_a_gpu_has_shown_is_stored_for_auto(monkeypatch, tmp_path):
    run = {"feature": "f", "state": "cold", "backend": "FLASH_ATTN", "capability": "9.0", "vllm": "0.33.0"}
    shown = f'<properties><property name="late_graphs-cold" value="{escape(json.dumps(run))}"/></properties>'
    report = (
        '<testsuites><testsuite tests="2"><testcase name="a">{}</testcase><testcase name="b">{}<failure/></testcase>'
    )
    content = report.format(shown, shown.replace("&quot;f", "&quot;g")) + "</testsuite></testsuites>"
    writes = f"import sys; open(sys.argv[1], 'w').write({content!r})"
    monkeypatch.setattr(gpu_figures, "steps", lambda *_: [Step("shows", _python(writes), 60)])
    proof = tmp_path / "proof.json"
    words = ["--json", str(tmp_path / "figures.json"), "--vllm", str(tmp_path), "--proof", str(proof)]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert json.loads(proof.read_text())["runs"] == [run]


def test_load_formats_are_timed_if_their_package_is_installed(tmp_path):
    (tmp_path / "lib/python3.12/site-packages/fastsafetensors").mkdir(parents=True)
    names = " ".join(step.name for step in steps(Path("model"), tmp_path / "bin"))
    assert re.findall(r"--load-format (\w+)", names) == ["auto", "fastsafetensors"]


def test_with_vllm_both_sides_have_the_same_flags():
    found = {step.name: " ".join(step.words) for step in steps(Path("model"), Path("bin"))}
    assert "vllm, compiled: start" in found
    assert found["vllm, eager: start"].count("--enforce-eager") == 2
    assert "embedded: requests" in found
