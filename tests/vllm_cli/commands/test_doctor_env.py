"""`vllm-cli doctor --env`, and the machine in the report of `doctor`."""

import json

import pytest

from envs.registry import variables
from vllm_cli.main import main
from vllm_cli.version import VERSION


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


@pytest.mark.parametrize("words", [["--env"], ["--env", "--json"], [], ["--json"]], ids=" ".join)
def test_secrets_are_never_shown(words, monkeypatch, capsys):
    for name in ("VLLM_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "tell-nobody")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:tell-nobody@mirror")
    assert main(["doctor", *words]) == 0
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
