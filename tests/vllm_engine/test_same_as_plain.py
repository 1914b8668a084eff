"""vLLM's answers, log and process settings are the same with `vllm serve` and with `vllm-cli serve`."""

import json
import math
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from base.lifecycle import START_INFO, START_PHASES
from server.operation.engine_watchdog import SILENCE_METRIC
from tests.support.http_client import Answer, ask
from tests.support.waiting import wait_until
from tests.vllm_engine import process_observer
from tests.vllm_engine.conftest import PEER_MODEL, StartVllm
from tests.vllm_engine.vllm_server import VllmServer, title_of

pytestmark = [pytest.mark.versions, pytest.mark.ci_vllm]

_OWN_NAMES: Final = ("APIServer", "EngineCore", "Worker")
_LINE: Final = re.compile(r"\(([\w-]+) pid=\d+\) (\w+) [\d-]+ [\d:]+ \[([\w.]+:\d+)\]")


@dataclass
class Recording:
    """The records of a server. Exit code and lines of the log are added after its end."""

    answers: dict[str, Any] = field(default_factory=dict)
    titles: set[str] = field(default_factory=set)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a process in multiprocessing -> its settings."""
    exit_code: int | None = None
    lines: set[tuple[str, str, str]] = field(default_factory=set)
    """For each log line before the shutdown: process, level, and place in vLLM's source."""
    log: str = ""


def record(server: VllmServer, questions, *, observed: Path, end: int) -> Recording:
    """Sends the requests, records the processes' settings and stops the server with a signal."""
    server.wait_ready()
    recording = Recording(answers=questions(server))
    main = server.main_process()
    serving = [main, *(p for p in server.family() if p != main and title_of(p).startswith(_OWN_NAMES))]
    recording.titles = {title_of(process) for process in serving[1:]}
    for process in serving:
        process.send_signal(signal.SIGUSR2)
    for process in serving:
        settings = _read(observed / f"{process.pid}.json")
        recording.settings[settings["name"]] = settings
    recording.exit_code = server.terminate(end)
    recording.log = server.log
    recording.lines = set(_lines(recording.log))
    return recording


def _lines(log: str) -> Iterator[tuple[str, str, str]]:
    """Lines before the signal. After the signal, their order depends on a race of vLLM's processes."""
    for line in log.splitlines():
        if "[shutdown]" in line:
            return
        if match := _LINE.match(line):
            yield match[1], match[2], match[3]


def observing(folder: Path) -> dict[str, str]:
    """Variables for a server with the observer, whose processes write settings into the folder.

    It is no plugin, with which our start would import in another order.
    """
    folder.mkdir()
    name = process_observer.__name__
    (folder / "sitecustomize.py").write_text(f"import {name} as observer\nobserver.observe()\n")
    return {"PYTHONPATH": str(folder), process_observer.FOLDER_VARIABLE: str(folder)}


def _read(path: Path) -> dict[str, Any]:
    wait_until(path.exists, 120.0)
    return json.loads(path.read_text())


def first_status(server: VllmServer, path: str) -> tuple[int, Any]:
    """Waits for the first answer of a starting server. Returns its status and JSON body."""
    answers: list[Answer] = []

    def has_answered() -> bool:
        assert server.process.poll() is None, server.log
        answers.append(ask(f"{server.url}{path}"))
        return answers[-1].status != 0

    wait_until(has_answered, 120.0)
    return answers[-1].status, answers[-1].json


PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a land far away,",
    "1, 1, 2, 3, 5, 8,",
    "Die Hauptstadt von Deutschland",
    "\n\n\t ¿Qué 🙂?",
)
CHATS = (
    [{"role": "user", "content": "What is the capital of Italy?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "2 + 2?"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one."},
    ],
)
_OF_EACH_START = (
    "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME",
    "VLLM_DIST_IDENT",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "PYTEST_CURRENT_TEST",
    "VCLI_STANDBY",
    "XDG_RUNTIME_DIR",
    "VCLI_START_FOLDER",
)
"""Variables that differ in each start: random names, an address, the standby."""
_TIMED_LINES = ("loggers.py", "shm_broadcast.py")
"""Source files of log lines that depend on timing."""
_IMPORT_LINES = ("indexer_topk.py",)
"""Source files whose import logs lines in vLLM 0.31. In the forkserver, vLLM's log is not configured yet."""


@pytest.fixture(scope="module")
def plain(start_vllm: StartVllm, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return _record(start_vllm, "plain", tmp_path_factory.mktemp("plain") / "observed")


@pytest.fixture(scope="module", params=["ours", "warm"])
def ours(
    start_vllm: StartVllm, plain: Recording, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Recording:
    """The recording of `vllm-cli serve`. It runs after `plain`, which fills vLLM's cache of inspections."""
    return _record(start_vllm, request.param, tmp_path_factory.mktemp("ours") / "observed")


def _record(start_vllm: StartVllm, launcher: str, observed: Path) -> Recording:
    arguments = ("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8", "--shutdown-timeout", "20")
    environment = observing(observed) | {"VLLM_LOGGING_LEVEL": "INFO", "USER_OWN": "kept"}
    with start_vllm(launcher, *arguments, model=PEER_MODEL, environment=environment) as server:
        while_starting = first_status(server, "/health") if launcher != "plain" else None
        recording = record(server, _ask, observed=observed, end=signal.SIGTERM)
    recording.answers["while starting"] = while_starting
    return recording


def _ask(server: VllmServer) -> dict[str, Any]:
    at_zero = {"temperature": 0, "max_tokens": 24}
    wanted = {"logprobs": 3, "echo": False, **at_zero}
    completions = [server.post("/v1/completions", prompt=prompt, **wanted) for prompt in PROMPTS]
    chats = [
        server.post("/v1/chat/completions", messages=chat, logprobs=True, top_logprobs=3, **at_zero) for chat in CHATS
    ]
    drawn = server.post("/v1/completions", prompt=PROMPTS[0], max_tokens=24, temperature=0.9, seed=7)
    events = server.stream("/v1/completions", prompt=PROMPTS[2], **at_zero)
    chunks = server.stream("/v1/chat/completions", messages=CHATS[0], **at_zero)
    metrics = [line.split()[2:4] for line in server.text("/metrics").splitlines() if line.startswith("# TYPE")]
    samples = {line.rpartition(" ")[0] for line in server.text("/metrics").splitlines() if line.startswith("vllm:")}
    return {
        "completions": [choice for answer in completions for choice in answer["choices"]],
        "chats": [choice for answer in chats for choice in answer["choices"]],
        "usage": [answer["usage"] for answer in (*completions, *chats, drawn)],
        "drawn": [choice["text"] for choice in drawn["choices"]],
        "streamed": "".join(event["choices"][0]["text"] for event in events),
        "streamed chat": "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks),
        "metrics": sorted(metrics),
        "samples": samples,
        "openapi": server.get("/openapi.json"),
        "tokens": server.post("/tokenize", prompt=PROMPTS[5]),
        "models": [(model["id"], model["max_model_len"], model["root"]) for model in server.get("/v1/models")["data"]],
        "page": server.status("/"),
        "statuses": {path: server.status(path) for path in ("/health", "/ping", "/version", "/load", "/nothing")},
    }


@pytest.mark.parametrize("kind", ["completions", "chats"])
def test_texts_tokens_and_logprobs_are_equal(plain, ours, kind):
    assert len(plain.answers[kind]) == {"completions": len(PROMPTS), "chats": len(CHATS)}[kind]
    for one, other in zip(plain.answers[kind], ours.answers[kind], strict=True):
        _assert_same(one, other)


def _assert_same(one: Any, other: Any) -> None:
    """Checks that values are equal. Numbers may differ by rounding."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name, value in one.items():
            _assert_same(value, other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            _assert_same(mine, theirs)
    elif isinstance(one, float):
        assert math.isclose(one, other, abs_tol=1e-3)
    else:
        assert one == other


@pytest.mark.parametrize(
    "what", ["usage", "drawn", "streamed", "streamed chat", "openapi", "tokens", "models", "statuses"]
)
def test_answers_are_equal(plain, ours, what):
    assert plain.answers[what]
    assert ours.answers[what] == plain.answers[what]


def test_the_path_of_the_page_is_free_in_vllm(plain, ours):
    assert (plain.answers["page"], ours.answers["page"]) == (404, 200)


def test_metrics_have_the_same_names_types_and_labels(plain, ours):
    assert ["vllm:num_requests_running", "gauge"] in ours.answers["metrics"]
    own = [[name, "gauge"] for name, _ in (SILENCE_METRIC, START_INFO, START_PHASES)]
    assert ours.answers["metrics"] == sorted([*plain.answers["metrics"], *own])
    assert _names(ours.answers["samples"]) == _names(plain.answers["samples"])


def _names(samples: set[str]) -> set[str]:
    """Removes buckets, whose bounds are always equal, and the configuration, which has folders."""
    return {sample for sample in samples if "_bucket" not in sample and "_config_info" not in sample}


def test_processes_have_the_same_titles_and_the_server_the_same_exit_code(plain, ours):
    assert ours.titles == plain.titles == {"EngineCore", "Worker"}
    assert ours.exit_code == plain.exit_code == 0


def test_log_lines_come_from_the_same_places_and_processes(plain, ours):
    assert {process for process, _, _ in ours.lines} >= {"APIServer", "EngineCore", "Worker"}
    assert _untimed(ours) == _untimed(plain)


def _untimed(recording: Recording) -> set[tuple[str, str, str]]:
    return {line for line in recording.lines if not line[2].startswith((*_TIMED_LINES, *_IMPORT_LINES))}


@pytest.mark.parametrize("process", ["MainProcess", "EngineCore", "VllmWorker-0"])
def test_settings_are_equal_in_each_process(plain, ours, process):
    ours, plain = ours.settings[process], plain.settings[process]
    assert ours.keys() == plain.keys()
    assert [name for name in ours if name not in ("environment", "streams") and ours[name] != plain[name]] == []


@pytest.mark.parametrize("process", ["MainProcess", "EngineCore", "VllmWorker-0"])
def test_the_environment_is_equal_in_each_process(plain, ours, process):
    environment = _environment(ours, process)
    assert environment == _environment(plain, process)
    assert environment["USER_OWN"] == "kept"


def _environment(recording: Recording, process: str) -> dict[str, str]:
    """Variables that do not differ per start. Folders occur once, because OpenCV adds its own repeatedly."""
    variables = dict(recording.settings[process]["environment"])
    folder = variables["PYTHONPATH"].rpartition(":")[2]
    ordered = {name: ":".join(dict.fromkeys(value.split(":"))) for name, value in variables.items() if "PATH" in name}
    return {
        name: value.replace(folder, "FOLDER")
        for name, value in {**variables, **ordered}.items()
        if name not in _OF_EACH_START
    }


@pytest.mark.parametrize("process", ["MainProcess", "EngineCore", "VllmWorker-0"])
def test_standard_streams_are_the_launchers(ours, process):
    stdin, stdout, stderr = ours.settings[process]["streams"]
    assert stdin == "/dev/null"
    assert stdout == stderr == ours.settings["MainProcess"]["streams"][1]
    assert stdout.endswith(".log")


def test_probes_are_answered_before_vllm_serves(ours):
    status, body = ours.answers["while starting"]
    assert status == 503
    assert body["phase"]
