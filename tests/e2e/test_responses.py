"""/v1/responses of a real server: the `openai` client, the background, a drain and a restart."""

import signal
from typing import Any

import pytest
from openai import NotFoundError

from tests.waiting import wait_until

MODEL = "smol"
QUESTION = "What is the capital of France?"
ENDLESS: Any = {"model": MODEL, "input": "Tell me a story.", "extra_body": {"ignore_eos": True}}


def test_client_creates_streams_and_continues(client):
    first = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=32)
    assert "Paris" in first.output_text
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=32) as stream:
        assert stream.get_final_response().output_text == first.output_text
    second = client.responses.create(model=MODEL, input="Say it again.", previous_response_id=first.id)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens


def test_a_response_in_the_background_is_cancelled(server, client):
    response = client.responses.create(**ENDLESS, background=True)
    wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0)


def test_a_drain_waits_for_the_background_and_a_file_outlives_the_server(start_server, tmp_path):
    arguments = ("--responses-store-file", str(tmp_path / "responses.db"), "--max-model-len", "512")
    with start_server(*arguments, "--shutdown-timeout", "200") as server:
        response = server.openai().responses.create(**ENDLESS, background=True, max_output_tokens=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(200) == 0
    with start_server(*arguments) as server:
        kept = server.openai().responses.retrieve(response.id)
        assert (kept.status, kept.usage is not None and kept.usage.output_tokens) == ("incomplete", 60)


def test_a_drain_ends_what_takes_too_long(start_server, tmp_path):
    arguments = ("--responses-store-file", str(tmp_path / "responses.db"))
    with start_server(*arguments, "--shutdown-timeout", "0") as server:
        client = server.openai()
        response = client.responses.create(**ENDLESS, background=True)
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    with start_server(*arguments) as server:
        kept = server.openai().responses.retrieve(response.id)
        assert kept.status == "failed"
        assert kept.error is not None
        assert "shutting down" in kept.error.message
        with pytest.raises(NotFoundError):
            server.openai().responses.retrieve("resp_other")
