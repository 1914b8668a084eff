"""The durations of a request: Server-Timing header and metrics."""

import re

import pytest

DURATION = re.compile(r"(\w+);dur=([\d.]+)")


def timing(response):
    return {name: float(milliseconds) for name, milliseconds in DURATION.findall(response.headers["server-timing"])}


@pytest.mark.parametrize("kind", ["complete", "chat"])
def test_a_response_reports_its_durations(server, engine, kind):
    engine.queue_s, engine.prefill_s, engine.step_s = 2.0, 3.0, 0.01
    spent = timing(getattr(server, kind)())
    assert list(spent) == ["queue", "render", "prefill", "decode"]
    assert (spent["queue"], spent["prefill"]) == (2000, 3000)
    assert spent["render"] > 0
    assert spent["decode"] >= 10


def test_a_stream_reports_the_durations_until_its_first_event(server, engine):
    engine.queue_s, engine.prefill_s = 2.0, 3.0
    spent = timing(server.complete(stream=True))
    assert list(spent) == ["queue", "render", "prefill"]
    assert (spent["queue"], spent["prefill"]) == (2000, 3000)


def test_the_longest_sequence_counts(server, engine):
    engine.prefill_s = 0.5
    assert timing(server.complete(n=3))["prefill"] == 500


def test_tokenizing_reports_only_the_rendering(server):
    response = server.post("/tokenize", {"messages": [{"role": "user", "content": "Hello"}]})
    assert list(timing(response)) == ["render"]


def test_a_rejected_request_reports_no_durations(server):
    assert "server-timing" not in server.complete(temperature=9).headers


def samples(server, name):
    return [line for line in server.get("/metrics").text.splitlines() if line.startswith(name)]


def test_rendering_and_waiting_are_metrics(serve):
    own = serve()
    own.complete()
    own.complete(prompt="word " * 2000, truncate_prompt_tokens=8)
    assert samples(own, "vllm_cli:request_render_time_seconds_count") == [
        "vllm_cli:request_render_time_seconds_count 2.0"
    ]
    assert samples(own, "vllm_cli:renderer_queue_time_seconds_count") == [
        'vllm_cli:renderer_queue_time_seconds_count{pool="text"} 2.0',
        'vllm_cli:renderer_queue_time_seconds_count{pool="mm"} 0.0',
    ]
    assert samples(own, "vllm_cli:renderer_queue_depth") == [
        'vllm_cli:renderer_queue_depth{pool="text"} 0.0',
        'vllm_cli:renderer_queue_depth{pool="mm"} 0.0',
    ]
