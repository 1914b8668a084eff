"""The responder answers with the status page, its data and the metrics until the HTTP server accepts."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from base.status_page.page import read_page
from startup.probes.listener import listen
from startup.probes.probe_answers import ProbeAnswers
from startup.probes.probe_http import Answer
from startup.probes.responder import StartupResponder
from startup.probes.start_state import StartState
from startup.timeline.history import StartSubject
from startup.timeline.timeline import PhaseTimeline
from tests.waiting import wait_until


@pytest.fixture
def starting() -> Iterator[Any]:
    """A start in the phase load_weights: its state, and a function that sends a GET to the responder."""
    timeline = PhaseTimeline.from_process_start()
    subject = StartSubject(model="smol", start_method="spawn", packages=(), key=lambda versions: "key")
    state = StartState(subject, timeline)
    with (
        listen(host="127.0.0.1", port=0, uds=None) as listener,
        StartupResponder(listener, ProbeAnswers(state)) as responder,
    ):
        timeline.on_change = lambda: responder.update(state.to_message())
        port = listener.getsockname()[1]

        def get(path: str) -> Any:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60)

        with timeline.span("load_weights"):
            yield state, get


def test_the_page_is_the_same_as_that_of_the_http_server(starting):
    _, get = starting
    with get("/") as answer:
        assert answer.read() == read_page().body
        assert answer.headers["Content-Security-Policy"] == dict(read_page().headers)["Content-Security-Policy"]
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def test_status_json_has_progress_and_spans_of_the_start(starting):
    _, get = starting

    def status() -> dict[str, Any]:
        with get("/status.json") as answer:
            return json.load(answer)

    wait_until(lambda: status()["progress"]["phase"] == "load_weights")
    content = status()
    assert (content["status"], content["model"], content["live"], content["error"]) == ("starting", "smol", None, None)
    assert any(span["name"] == "load_weights" for span in content["start"]["spans"])


def test_metrics_of_a_start_can_be_parsed(starting):
    from prometheus_client.parser import text_string_to_metric_families

    _, get = starting
    with get("/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert families["vllm:engine_startup_time_seconds"].type == "gauge"
    assert families["vllm:engine_startup_time_seconds"].documentation
    assert families["vllm_cli:startup_phase_seconds"].samples


def test_the_phase_for_the_log_is_the_running_span_and_then_the_outcome(starting):
    state, _ = starting
    assert state.phase == "load_weights"
    state.fail("no memory")
    assert state.phase == "failed"


def test_a_private_start_answers_only_what_probes_need():
    timeline = PhaseTimeline.from_process_start()
    subject = StartSubject(model="smol", start_method="spawn", packages=(), key=lambda versions: "key")
    answers = ProbeAnswers(StartState(subject, timeline), is_private=True)
    statuses = {
        path: answers.answer(path).status for path in ("/", "/status.json", "/startupz", "/metrics", "/v1/models")
    }
    assert set(statuses.values()) == {503}
    assert b"smol" not in b"".join(answers.answer(path).body for path in statuses)
    assert answers.answer("/livez").status == 200


def test_an_answer_is_encoded_with_its_headers():
    assert b"\r\nX-One: 1\r\n" in Answer(200, b"{}", headers=(("X-One", "1"),)).encode()
