"""The spans of requests and starts; tests/e2e/test_traces.py tests that they are sent."""

import time
from typing import Any

import pytest

from server.tracing.span import RequestTrace, Span, describe_request, describe_start
from tests.server.http.raw_request import send

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class RecordingTracer:
    """Keeps the records that a tracer would send."""

    def __init__(self) -> None:
        self.traces: list[RequestTrace] = []

    def begin_request(self, read_header: Any) -> RequestTrace:
        header = read_header(b"traceparent")
        return RequestTrace({} if header is None else {"traceparent": header})

    def end_request(self, trace: RequestTrace) -> None:
        self.traces.append(trace)


@pytest.fixture
def recorded() -> RecordingTracer:
    return RecordingTracer()


@pytest.fixture
def traced(serve, recorded) -> Any:
    return serve(tracer=recorded)


def spans_of(trace: RequestTrace) -> Span:
    offset_ns = time.time_ns() - time.perf_counter_ns()
    return describe_request(trace, model_name="smol", end_s=time.perf_counter(), offset_ns=offset_ns)


def test_a_request_has_a_span_for_each_stage(traced, recorded, engine, encode, wait_until) -> None:
    engine.queue_s, engine.prefill_s, engine.num_cached_tokens = 2.0, 3.0, 1
    body = traced.post(
        "/v1/completions",
        {"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9},
        headers={"traceparent": HEADER},
    ).json()
    wait_until(lambda: recorded.traces)
    (trace,) = recorded.traces
    assert trace.headers == {"traceparent": HEADER}
    span = spans_of(trace)
    num_prompt_tokens = len(encode("The capital of France is"))
    assert (span.name, span.is_server, span.error) == ("llm_request", True, None)
    facts = dict(span.attributes)
    latencies = {name: facts.pop(name) for name in list(facts) if name.startswith("gen_ai.latency.")}
    assert facts == {
        "gen_ai.request.id": body["id"],
        "gen_ai.response.model": "smol",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.request.n": 1,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.usage.num_sequences": 1,
        "gen_ai.usage.prompt_tokens": num_prompt_tokens,
        "gen_ai.usage.completion_tokens": 3,
    }
    assert latencies["gen_ai.latency.time_in_queue"] == 2.0
    assert latencies["gen_ai.latency.time_in_model_prefill"] == 3.0
    inference_s = 3.0 + latencies["gen_ai.latency.time_in_model_decode"]
    assert latencies["gen_ai.latency.time_in_model_inference"] == inference_s
    assert 0 < latencies["gen_ai.latency.time_to_first_token"] <= latencies["gen_ai.latency.e2e"]
    children = {child.name: child for child in span.children}
    assert list(children) == ["render", "queue", "prefill", "decode"]
    assert children["queue"].end_ns - children["queue"].begin_ns == pytest.approx(2e9, abs=1e3)
    assert children["queue"].end_ns == children["prefill"].begin_ns
    assert children["prefill"].end_ns == children["decode"].begin_ns
    assert children["prefill"].attributes["vllm_cli.cached_tokens"] == 1
    assert span.begin_ns <= children["render"].begin_ns <= children["render"].end_ns <= span.end_ns
    assert children["decode"].end_ns <= span.end_ns


def test_choices_have_separate_stages_and_share_a_prompt(traced, recorded, encode, wait_until) -> None:
    traced.complete(n=2, max_tokens=2, prompt=["a", "b c"])
    wait_until(lambda: recorded.traces)
    span = spans_of(recorded.traces[0])
    assert span.attributes["gen_ai.usage.num_sequences"] == 4
    assert span.attributes["gen_ai.request.n"] == 2
    assert span.attributes["gen_ai.usage.prompt_tokens"] == len(encode("a")) + len(encode("b c"))
    assert span.attributes["gen_ai.usage.completion_tokens"] == 8
    assert [child.name for child in span.children].count("decode") == 4


def test_a_failure_of_the_engine_is_an_error_span(traced, recorded, engine, wait_until) -> None:
    engine.fails_after = 2
    traced.complete()
    wait_until(lambda: recorded.traces)
    assert spans_of(recorded.traces[0]).error is not None


def test_a_request_that_never_reaches_the_engine_has_no_span(traced, recorded, wait_until) -> None:
    traced.complete(temperature=9)
    traced.post("/tokenize", {"prompt": "Hello"})
    wait_until(lambda: len(recorded.traces) == 2)
    assert [trace.has_reached_engine for trace in recorded.traces] == [False, False]


def test_a_client_that_disconnects_leaves_an_aborted_sequence(traced, recorded, engine, wait_until) -> None:
    engine.reply = engine.reply * 50
    engine.holds_after = 2
    with send(traced, "/v1/completions", {"prompt": "a", "max_tokens": 400}):
        wait_until(lambda: engine.requests)
    wait_until(lambda: recorded.traces)
    assert spans_of(recorded.traces[0]).attributes["gen_ai.response.finish_reasons"] == ["abort"]


def test_a_start_is_one_trace() -> None:
    report = {
        "total_s": 2.0,
        "model": "smol",
        "start_method": "forkserver",
        "outcome": "ready",
        "marks": {"listening": 0.5},
        "spans": [
            {"process": "api", "name": "wait_for_engine", "begin_s": 1.0, "end_s": 2.0, "waits_for": "engine"},
            {"process": "engine", "name": "load_weights", "begin_s": 1.0, "end_s": 1.5, "waits_for": None},
        ],
    }
    span = describe_start(report, ready_ns=10_000_000_000)
    assert (span.name, span.begin_ns, span.end_ns) == ("startup", 8_000_000_000, 10_000_000_000)
    assert span.events == {"listening": 8_500_000_000}
    waiting, loading = span.children
    assert waiting.attributes == {"vllm_cli.process": "api", "vllm_cli.waits_for": "engine"}
    assert (loading.name, loading.begin_ns, loading.end_ns) == ("load_weights", 9_000_000_000, 9_500_000_000)
