"""Prometheus metrics: names, labels and buckets as vLLM's, counted exactly."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics.server_metrics import ServerMetrics
from server.types import EngineStats
from tests.server.http.conftest import FinishedStart
from tests.server.http.raw_request import send

LABELS = {"model_name": "smol", "engine": "0"}


@pytest.fixture
def own(serve):
    """A server whose counters only this test changes."""
    return serve()


def samples(server):
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(server, name, **labels):
    return samples(server)[name, frozenset((LABELS | labels).items())]


def test_requests_and_tokens_are_counted_exactly(own, encode):
    own.complete(max_tokens=3)
    own.complete(n=2)
    own.chat(stream=True, stop=",")
    prompt = len(encode("The capital of France is"))
    chat_prompt = own.post("/tokenize", {"messages": [{"role": "user", "content": "Hello"}]}).json()["count"]
    assert value(own, "vllm:prompt_tokens_total") == 3 * prompt + chat_prompt
    assert value(own, "vllm:generation_tokens_total") == 3 + 2 * 8 + 2
    assert value(own, "vllm:request_success_total", finished_reason="length") == 1
    assert value(own, "vllm:request_success_total", finished_reason="stop") == 3
    assert value(own, "vllm:request_success_total", finished_reason="abort") == 0
    assert value(own, "vllm:time_to_first_token_seconds_count") == 4
    assert value(own, "vllm:inter_token_latency_seconds_count") == 2 + 2 * 7 + 1
    assert value(own, "vllm:e2e_request_latency_seconds_count") == 4
    assert value(own, "vllm:request_time_per_output_token_seconds_count") == 4
    assert value(own, "vllm:request_prompt_tokens_sum") == 3 * prompt + chat_prompt
    assert value(own, "vllm:request_generation_tokens_sum") == 3 + 2 * 8 + 2
    assert value(own, "vllm:request_params_n_sum") == 1 + 2 + 1
    assert value(own, "vllm:request_params_n_count") == 3
    assert value(own, "vllm:request_max_num_generation_tokens_sum") == 3 + 8 + 2
    assert value(own, "vllm:request_params_max_tokens_sum") == 3 + 2 * 16 + (512 - chat_prompt)


def test_failed_requests_are_counted(own, engine):
    engine.fails_after = 2
    own.complete()
    assert value(own, "vllm:request_success_total", finished_reason="error") == 1


def test_requests_that_never_reach_the_engine_are_not_counted(own):
    own.complete()
    own.complete(temperature=9)
    assert value(own, "vllm:e2e_request_latency_seconds_count") == 1


def test_time_in_the_engine_is_split_into_stages(own, engine):
    engine.queue_s, engine.prefill_s = 2.0, 3.0
    own.complete()
    names = ("queue", "prefill", "decode", "inference")
    times = {name: value(own, f"vllm:request_{name}_time_seconds_sum") for name in names}
    assert (times["queue"], times["prefill"]) == (2.0, 3.0)
    assert 0 < times["decode"] < value(own, "vllm:e2e_request_latency_seconds_sum")
    assert times["inference"] == pytest.approx(3.0 + times["decode"])
    assert {value(own, f"vllm:request_{name}_time_seconds_count") for name in names} == {1.0}


def test_scheduler_state_is_the_engines_latest(own, engine):
    own.complete()
    engine.stats = EngineStats(3, 4, 0.25, 100, 40, 7, 2)
    assert value(own, "vllm:num_requests_running") == 3
    assert value(own, "vllm:num_requests_waiting") == 4
    assert value(own, "vllm:kv_cache_usage_perc") == 0.25
    assert value(own, "vllm:prefix_cache_queries_total") == 100
    assert value(own, "vllm:prefix_cache_hits_total") == 40
    assert value(own, "vllm:num_preemptions_total") == 2


def test_every_step_counts_its_tokens(own):
    own.complete(max_tokens=5)
    assert value(own, "vllm:iteration_tokens_total_count") == 5
    assert value(own, "vllm:iteration_tokens_total_sum") == 5


def test_token_buckets_end_at_the_context_length(own):
    own.complete()
    bounds = [dict(labels)["le"] for name, labels in samples(own) if name == "vllm:request_prompt_tokens_bucket"]
    assert bounds == ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "+Inf"]


def test_cache_size_is_reported(own):
    own.complete()
    ((_, labels),) = [key for key in samples(own) if key[0] == "vllm:cache_config_info"]
    facts = dict(labels)
    assert int(facts["num_gpu_blocks"]) * int(facts["block_size"]) == int(facts["kv_cache_size_tokens"]) == 4096
    assert float(facts["kv_cache_max_concurrency"]) >= 1


def test_http_requests_are_counted_by_route(own):
    own.complete()
    own.complete(n=0)
    own.get("/v1/models/smol")
    own.get("/nowhere")
    for path in ("/health", "/ping", "/version", "/load", "/metrics"):
        own.get(path)
    found = samples(own)

    def count(handler, status, method):
        labels = frozenset({"handler": handler, "status": status, "method": method}.items())
        return found.get(("http_requests_total", labels), 0)

    assert count("/v1/completions", "2xx", "POST") == 1
    assert count("/v1/completions", "4xx", "POST") == 1
    assert count("/v1/models/{model:path}", "2xx", "GET") == 1
    assert count("none", "4xx", "GET") == 1
    assert sum(number for (name, _), number in found.items() if name == "http_requests_total") == 4
    assert sum(number for (name, _), number in found.items() if name == "http_request_duration_seconds_count") == 4


def test_engine_families_appear_with_the_engine(engine, renderer):
    metrics = ServerMetrics("smol", FinishedStart(), renderer)
    assert b"vllm:num_requests" not in metrics.render()
    for _restart in range(2):
        metrics.register_engine(engine.info, lambda: engine.stats)
        assert metrics.render().count(b"# TYPE vllm:num_requests_running gauge") == 1


def test_start_is_reported_in_seconds(own):
    assert value(own, "vllm:engine_startup_time_seconds") == 2.0
    assert samples(own)["vllm_cli:startup_phase_seconds", frozenset({("phase", "engine:load_weights")})] == 0.5


def test_requests_of_disconnected_clients_are_counted_as_aborted(own, engine, wait_until):
    engine.reply = engine.reply * 50
    engine.holds_after = 2
    with send(own, "/v1/completions", {"prompt": "a", "max_tokens": 400}):
        wait_until(lambda: engine.requests)
    labels = frozenset({"handler": "/v1/completions", "status": "4xx", "method": "POST"}.items())
    wait_until(lambda: samples(own).get(("http_requests_total", labels)) == 1)
    assert own.parts.running.num_running == 0
    assert value(own, "vllm:request_success_total", finished_reason="abort") == 1
