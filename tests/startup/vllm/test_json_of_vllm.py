"""`--log-format json` with vLLM: every record of every process is one JSON object on one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from startup.vllm.command_line import CommandLine
from startup.vllm.installed import InstalledVllm
from startup.vllm.patches.json_logs import log_as_json
from tests.startup.vllm.fake_start import FakeStart, environment, without_forks

pytestmark = pytest.mark.thorough

_PRINTED = ("EngineCore prints a line", "VllmWorker-0 prints a line", "EngineCore ends with")
"""Beginnings of what the fake vLLM prints without logging, for the tests."""


def _lines(start: FakeStart) -> list[dict[str, Any]]:
    return [json.loads(line) for line in start.text.splitlines() if not line.startswith(_PRINTED)]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_every_line_is_an_object(method, folder):
    env = environment(folder, VLLM_WORKER_MULTIPROC_METHOD=method)
    with FakeStart(folder, "--log-format", "json", "--worker-prints-error", env=env) as start:
        start.wait_until_ready()
        start.wait_for_line("ready after")
        start.wait_for_line("a library of the worker prints an error")
        state = start.state()
        assert start.end() == 0
        lines = _lines(start)
    by_message = {line["message"]: line for line in lines}
    assert by_message["the engine\nstarts"]["role"] == "EngineCore"
    assert by_message["worker 0 starts"]["role"] == "Worker_0"
    assert by_message["a library of the worker prints an error"]["role"] == "Worker_0"
    [access] = [line for line in lines if line["logger"] == "uvicorn.access"][:1]
    assert (access["path"], access["status"], access["role"]) == ("/health", 200, "APIServer")
    [ready] = [line for line in lines if line["message"].startswith("ready after")]
    assert (ready["role"], ready["phase"]) == ("launcher", "serving")
    assert len({line["pid"] for line in lines}) >= 3
    for process in (state["server"], state["engine"], *state["workers"]):
        own = [name for name in process["environment"] if name.startswith("VCLI_")]
        assert own == [], "vLLM's processes have no variable of vllm-cli in their environment"


def test_the_variable_sets_the_format_and_the_flag_excludes_paths_from_the_access_log(folder):
    env = environment(folder, VCLI_LOG_FORMAT="json")
    words = ("--disable-access-log-for-endpoints", "/health, /metrics")
    with FakeStart(folder, *words, env=env) as start:
        start.wait_until_ready()
        start.get("/nowhere")
        start.wait_for_line("/nowhere")
        paths = {line["path"] for line in _lines(start) if line["logger"] == "uvicorn.access"}
    assert paths == {"/nowhere"}


def test_the_error_of_an_engine_is_one_line(folder):
    with FakeStart(folder, "--log-format=json", "--engine-fails") as start:
        assert start.process.wait(60) == 3
        [failure] = [line for line in _lines(start) if line["role"] == "EngineCore" and "exception" in line]
        assert failure["exception"].endswith("RuntimeError: the engine cannot be initialised")
        *_, last = _lines(start)
        assert last["level"] == "ERROR"
        assert last["digest"]["process"].startswith("EngineCore pid=")
        assert last["digest"]["text"] == "RuntimeError: the engine cannot be initialised"
        assert failure["exception"].splitlines()[-1] in Path(last["digest"]["log"]).read_text()


@pytest.mark.parametrize(
    ("words", "variables", "version", "reason"),
    [
        ("--log-config-file x.json", {}, "0.32.0", "vLLM's log has a configuration of its own"),
        ("", {"VLLM_CONFIGURE_LOGGING": "0"}, "0.32.0", "VLLM_CONFIGURE_LOGGING disables"),
        ("--distributed-executor-backend ray", {}, "0.32.0", "Ray starts processes"),
        ("", {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "0.30.0", "vLLM 0.30.0 writes the process before each line"),
    ],
    ids=["own-file", "left-alone", "ray", "older"],
)
def test_a_reason_explains_why_vllm_does_not_log_json(words, variables, version, reason, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notice = log_as_json(InstalledVllm(version, tmp_path), CommandLine.of(words.split()), tmp_path)
    assert str(notice).startswith(f"--log-format json applies only to vllm-cli's own lines: {reason}")
    assert list(tmp_path.iterdir()) == []


def test_a_second_attempt_has_no_log_configuration_of_the_first(folder):
    """The configuration of the first attempt is not taken for the user's own."""
    env = environment(folder, without_forks(folder, "0.99.0+cpu"))
    with FakeStart(folder, "--log-format", "json", env=env) as start:
        server = start.wait_until_ready().state()["server"]
        assert "VLLM_LOGGING_CONFIG_PATH" not in server["environment"]
        lines = [json.loads(line) for line in start.lines_with("starts again without preloading", "own lines")]
        assert [line["role"] for line in lines] == ["launcher"] * 2
        assert lines[1]["message"].endswith("vLLM starts without preloading")
        assert list(folder.glob("vllm-cli-*")) == []
