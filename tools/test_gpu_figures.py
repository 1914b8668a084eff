"""One JSON file has all steps, including failed and overlong steps. No process of a step is left."""

import json
import re
import sys
from pathlib import Path

from click.testing import CliRunner

from tests.support.waiting import is_gone, wait_until
from tools import gpu_figures
from tools.gpu_figures import Step, main, read_result, run_step, steps
from tools.gpu_timeline import divide


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
    assert written["machine"]["versions"]["torch"]


def test_a_step_that_takes_too_long_is_ended_with_its_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_figures, "_LEAST_S", 0.0)
    pid = tmp_path / "pid"
    code = f"""
import subprocess, time
child = subprocess.Popen(["sleep", "100"])
open({str(pid)!r}, "w").write(str(child.pid))
time.sleep(100)
"""
    entry = run_step(Step("hangs", _python(code), 60), 2.0)
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


_LOG = """\
4.0 (EngineCore pid=7) INFO 11-28 05:46:18 [default_loader.py:507] Loading weights took 3.10 seconds
6.5 (EngineCore pid=7) INFO 11-28 05:46:20 [monitor.py:53] torch.compile took 1.50 s in total
6.9 (EngineCore pid=7) INFO 11-28 05:46:21 [monitor.py:93] Initial profiling/warmup run took 0.40 s
7.0 Capturing CUDA graphs (PIECEWISE):   0%|          | 0/51 [00:00<?, ?it/s]
7.5 (EngineCore pid=7) INFO 11-28 05:46:21 [model_runner.py:1164] Graph capturing finished in 0 secs, took 0.10 GiB
7.7 (EngineCore pid=7) INFO 11-28 05:46:22 [kernel_warmup.py:192] JIT kernel warmup finished in 0.20s.
8.0 (EngineCore pid=7) INFO 11-28 05:46:22 [kernel_warmup.py:489] Using FlashInfer managed autotune cache (root=x)
8.1 (EngineCore pid=7) INFO 11-28 05:46:22 [kernel_warmup.py:372] Running FlashInfer autotune with 8192 tokens
8.9 2026-11-28 05:46:23,279 - INFO - autotuner.py:1071 - flashinfer.jit: [Autotuner]: Autotuning process ends
9.0 Capturing CUDA graphs (PIECEWISE): 100%|##########| 1/1 [00:00<00:00, 9.13it/s]
9.1 Capturing CUDA graphs (FULL): 100%|##########| 1/1 [00:00<00:00, 9.13it/s]
9.25 (EngineCore pid=7) INFO 11-28 05:46:23 [model_runner.py:1164] Graph capturing finished in 0 secs, took 0.10 GiB
9.5 (EngineCore pid=7) INFO 11-28 05:46:23 [core.py:413] init engine (profile, create kv cache, warmup model) took 5 s
16.0 (APIServer pid=1) INFO 11-28 05:46:30 [start_metrics.py:60] all 102 CUDA graphs are captured, 5.4 s after readiness
"""


def test_the_parts_of_a_start_are_read_from_its_log():
    lines = [(float(line.split()[0]), line) for line in _LOG.splitlines()]
    parts = divide(lines, 11.0)
    assert parts == {
        "weights": 3.1, "compile": 1.5, "profile": 0.4, "JIT warm-up": 0.2, "autotune": 0.9, "graphs": 0.75,
        "rest": 4.15, "first token": 11.0, "graphs after readiness": 5.4,
    }  # fmt: skip


def test_load_formats_are_timed_if_their_package_is_installed(tmp_path):
    (tmp_path / "lib/python3.12/site-packages/fastsafetensors").mkdir(parents=True)
    names = " ".join(step.name for step in steps(Path("model"), tmp_path / "bin"))
    assert re.findall(r"--load-format (\w+)", names) == ["auto", "fastsafetensors"]


def test_with_vllm_both_sides_have_the_same_flags():
    found = {step.name: " ".join(step.words) for step in steps(Path("model"), Path("bin"))}
    assert "vllm compiled: start" in found
    assert found["vllm eager: start"].count("--enforce-eager") == 2
    assert "embedded: requests" in found
