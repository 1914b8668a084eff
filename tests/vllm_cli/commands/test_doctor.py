"""`vllm-cli doctor` with both engines."""

import json
import os
from pathlib import Path

import pytest

from envs.registry import variables
from tests.startup.vllm.fake_start import environment
from tests.support.cli import run_cli
from vllm_cli.main import main
from vllm_cli.version import VERSION

ROOT = Path(__file__).parents[3]


def test_a_start_with_a_fault_has_it_in_the_first_line(invoke, tmp_path):
    done = invoke("doctor", tmp_path / "no", "--engine", "embedded", "--port", "0")
    verdict, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert verdict.startswith("1 error")
    assert str(tmp_path / "no") in verdict
    assert [line for line in rest if line.startswith("# ")] == ["# Preflight", "# Machine", "# Kept between starts"]


def test_a_good_model_is_ok_for_programs_too_with_what_it_needs(invoke, model_path):
    done = invoke("doctor", model_path, "--engine", "embedded", "--port", "0", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["hooks"]) == (0, True, None)
    assert report["verdict"].startswith("ok")
    (need,) = [finding["message"] for finding in report["findings"] if finding["check"] == "memory"]
    assert "MiB are needed (256.6 MiB for the weights in bfloat16, " in need
    assert need.endswith(" are available")
    assert report["verdict"].endswith(": the embedded engine can be started here")
    assert report["machine"]["cpu"]["cores"] == os.cpu_count()
    assert "preloading_disabled" in report["kept"]


def test_each_of_several_models_has_a_section_and_the_worst_one_counts(invoke, tiny_llama, tmp_path):
    done = invoke("doctor", tiny_llama, tmp_path / "no", "--engine", "embedded", "--max-running", "2")
    verdict, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert verdict.startswith("1 error")
    assert f": no: MODEL {tmp_path / 'no'} is neither" in verdict
    titles = [line for line in rest if line.startswith("# ")]
    assert [title for title in titles if title != "# Preflight"] == [
        f"# Preflight of {tiny_llama.name}",
        "# Preflight of no",
        "# Machine",
        "# Kept between starts",
    ]
    assert any(line.split()[:2] == ["error", "model"] for line in rest[rest.index("# Preflight of no") :])
    done = invoke("doctor", tiny_llama, tiny_llama, "--engine", "embedded", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_file_of_models_is_examined_for_programs_too(invoke, tiny_llama, tmp_path):
    models = {"good": {"model": str(tiny_llama)}, "bad": {"cmd": "no-such-program --port ${PORT}"}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    done = invoke("doctor", "--models", tmp_path / "models.yaml", "--engine", "embedded", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    assert {name: each["ok"] for name, each in report["models"].items()} == {"good": True, "bad": False}
    assert [finding["check"] for finding in report["models"]["bad"]["findings"]] == ["program", "cmd"]
    assert "no-such-program" in report["verdict"]


@pytest.mark.thorough
def test_with_vllm_the_hooks_are_checked(tmp_path: Path):
    done = run_cli("doctor", "--engine", "vllm", "--json", env=environment(tmp_path), cwd=ROOT)
    report = json.loads(done.stdout)
    assert report["hooks"]["version"] in report["verdict"]
    assert done.returncode == (0 if report["hooks"]["fits"] else 1)
    assert ("warning" in report["verdict"]) is (not report["hooks"]["fits"])
    done = run_cli("doctor", "/no", "/nowhere", "--engine", "vllm", "--json", env=environment(tmp_path), cwd=ROOT)
    assert json.loads(done.stdout)["hooks"] == report["hooks"]


def test_env_shows_every_variable_with_its_source(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "debug")
    assert main(["doctor", "--env", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [variable.name for variable in variables() if not variable.is_internal]
    assert (rows["VLLM_LOGGING_LEVEL"]["value"], rows["VLLM_LOGGING_LEVEL"]["source"]) == ("DEBUG", "environment")
    assert rows["VLLM_WORKER_MULTIPROC_METHOD"] == {
        "name": "VLLM_WORKER_MULTIPROC_METHOD",
        "type": "choice",
        "choices": ["spawn", "fork", "forkserver"],
        "default": "forkserver",
        "value": "forkserver",
        "source": "default",
        "description": "How the engine process is started.",
        "error": None,
    }


def test_env_shows_an_internal_variable_only_where_it_is_set(monkeypatch, capsys):
    monkeypatch.setenv("VCLI_PRELOAD_MODULE", "1")
    assert main(["doctor", "--env"]) == 0
    shown = capsys.readouterr().out
    assert "VCLI_PRELOAD_MODULE = 1\n" in shown
    assert "VCLI_START_FOLDER" not in shown
    assert "VLLM_ENGINE_READY_TIMEOUT_S = 600\n" in shown


@pytest.mark.parametrize("arguments", [["--env"], ["--env", "--json"], [], ["--json"]], ids=" ".join)
def test_secrets_are_never_shown(arguments, monkeypatch, capsys):
    for name in ("VLLM_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "tell-nobody")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:tell-nobody@mirror")
    assert main(["doctor", *arguments]) == 0
    captured = capsys.readouterr()
    assert "tell-nobody" not in captured.out + captured.err
    assert "VLLM_API_KEY" in captured.out


def test_env_shows_errors_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "thread")
    monkeypatch.setenv("VCLI_XYZZY", "1")
    assert main(["doctor", "--env"]) == 2
    captured = capsys.readouterr()
    assert "VLLM_WORKER_MULTIPROC_METHOD = thread" in captured.out
    assert captured.err.splitlines() == [
        "Error: VLLM_WORKER_MULTIPROC_METHOD must be one of spawn, fork, forkserver, got 'thread'",
        "Error: VCLI_XYZZY is not a variable of vllm-cli.",
    ]


def test_the_report_describes_the_machine(monkeypatch, capsys):
    from importlib.metadata import version

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["machine"]
    assert facts["vllm-cli"] == VERSION
    assert facts["packages"]["torch"] == version("torch")
    assert facts["cpu"]["usable_cores"] >= 1
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert facts["environment"]["VLLM_LOGGING_LEVEL"] == "INFO"
