"""What a front answers itself in each state of its model."""

import json
import time

import pytest

from startup.on_request.front_answers import FrontAnswers, Question
from startup.on_request.front_keys import FrontKeys
from startup.on_request.model_state import ModelState
from startup.probes.serving_messages import LastAnswer, read_answers, write_answers

METRICS = b"""# HELP vllm_cli:model_stopped 1 while
# TYPE vllm_cli:model_stopped gauge
vllm_cli:model_stopped 0.0
# HELP vllm_cli:idle_stops_total How often
# TYPE vllm_cli:idle_stops_total counter
vllm_cli:idle_stops_total 0.0
vllm:generation_tokens_total{engine="0"} 7.0
"""
MODELS = b'{"object":"list","data":[]}'


def _answers(*, is_private: bool = False) -> FrontAnswers:
    model = ModelState(time.monotonic())
    memory = {"front_bytes": 1, "standby_bytes": 2}
    return FrontAnswers(model, "m", lambda: memory, FrontKeys(()), is_private=is_private)


def _stopped(*, is_private: bool = False) -> FrontAnswers:
    answers = _answers(is_private=is_private)
    now = time.monotonic()
    answers.model.become_ready(now)
    answers.model.pause(now)
    last = {"/metrics": LastAnswer("text/plain", METRICS), "/v1/models": LastAnswer("application/json", MODELS)}
    answers.last = read_answers(write_answers(last))
    answers.model.begin_stop(now)
    answers.model.end("", now)
    return answers


def _status(answers: FrontAnswers, path: str, query: str = "") -> int | None:
    answer = answers.find(Question(path, query))
    return None if answer is None else answer.status


@pytest.mark.parametrize("path", ["/health", "/ping", "/readyz", "/livez"])
def test_probes_of_a_stopped_model_succeed(path: str) -> None:
    answer = _stopped().find(Question(path))
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"")
    assert path == "/livez" or answer.headers == (("Model-State", "stopped"),)


def test_readiness_of_the_model_itself_can_be_asked() -> None:
    answer = _stopped().find(Question("/readyz", "model"))
    assert answer is not None
    assert (answer.status, json.loads(answer.body)["status"]) == (503, "stopped")


def test_metrics_and_models_are_those_of_the_last_server() -> None:
    answers = _stopped()
    metrics, models = (answers.find(Question(path)) for path in ("/metrics", "/v1/models"))
    assert metrics is not None
    assert models is not None
    lines = metrics.body.decode().splitlines()
    assert 'vllm:generation_tokens_total{engine="0"} 7.0' in lines
    own = {line.split()[0]: line.split()[1] for line in lines if line.startswith("vllm_cli:")}
    assert own == {"vllm_cli:model_stopped": "1.0", "vllm_cli:idle_stops_total": "1.0", "vllm_cli:wakes_total": "0.0"}
    assert (models.status, models.body, models.content_type) == (200, MODELS, "application/json")


def test_the_status_page_of_a_stopped_model_says_so() -> None:
    answers = _stopped()
    data = answers.find(Question("/status.json"))
    assert data is not None
    status = json.loads(data.body)
    assert (status["status"], status["live"], status["error"]) == ("stopped", None, None)
    assert (status["stopped"]["num_idle_stops"], status["stopped"]["standby_bytes"]) == (1, 2)
    assert _status(answers, "/") == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/docs", "/tokenizer_info", "/health/x"])
def test_everything_else_needs_the_server(path: str) -> None:
    assert _status(_stopped(), path) is None


def test_a_running_server_answers_itself() -> None:
    answers = _answers()
    answers.model.become_ready(0.0)
    paths = ("/health", "/livez", "/metrics", "/", "/v1/models")
    assert [_status(answers, path) for path in paths] == [None] * 5
    assert _status(answers, "/readyz", "model") == 200


def test_the_first_start_is_reported_as_without_a_front() -> None:
    answers = _answers()
    assert [_status(answers, path) for path in ("/health", "/livez", "/", "/metrics")] == [503, 200, 200, 200]
    assert _status(answers, "/v1/models") is None


def test_a_server_that_is_woken_counts_as_ready() -> None:
    answers = _stopped()
    answers.model.wake(time.monotonic())
    answers.begin_start()
    assert [_status(answers, path) for path in ("/health", "/v1/models")] == [200, 200]
    assert _status(answers, "/readyz", "model") == 503
    metrics = answers.find(Question("/metrics"))
    assert metrics is not None
    assert b"vllm_cli:model_stopped 0.0" in metrics.body


def test_after_a_failure_readiness_follows_the_back_off() -> None:
    answers = _stopped()
    now = time.monotonic()
    answers.model.wake(now)
    answers.model.end("no memory", now)
    answer = answers.find(Question("/health"))
    assert answer is not None
    assert (answer.status, answer.retry_after_s) == (503, 1)
    assert json.loads(answer.body)["error"]["message"] == "no memory"
    answers.model._retry_s = now - 1
    assert _status(answers, "/health") == 200


def test_a_private_front_answers_only_probes() -> None:
    answers = _stopped(is_private=True)
    paths = ("/health", "/readyz", "/livez", "/metrics", "/v1/models", "/", "/status.json")
    assert [_status(answers, path) for path in paths] == [200, 200, 200, None, None, None, None]


def test_a_browser_of_another_site_needs_the_servers_headers() -> None:
    answers = _stopped()
    assert answers.find(Question("/v1/models", is_cross_origin=True)) is None
    assert answers.find(Question("/health", is_cross_origin=True)) is not None


def test_head_has_no_body() -> None:
    answer = _stopped().find(Question("/v1/models", is_head=True))
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("received", "question"),
    [
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", Question("/health")),
        (b"GET /readyz?model HTTP/1.0\r\n\r\n", Question("/readyz", "model")),
        (b"HEAD / HTTP/1.1\r\n\r\n", Question("/", is_head=True)),
        (b"GET / HTTP/1.1\r\norigin: a\r\n\r\n", Question("/", is_cross_origin=True)),
        (b"POST /health HTTP/1.1\r\n\r\n", None),
        (b"GET /hea", None),
        (b"\x16\x03\x01\x00", None),
    ],
    ids=["probe", "query", "head", "origin", "post", "part", "tls"],
)
def test_a_question_is_read_from_the_first_bytes(received: bytes, question: Question | None) -> None:
    assert Question.read(received) == question
