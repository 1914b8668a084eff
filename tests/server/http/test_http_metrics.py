"""The cost of requests in metrics with vLLM's names, in the header Server-Timing and in the log."""

import asyncio
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from base.server_settings import LoggingConfig
from server.operation.engine_monitor import log_stats
from server.terms.limits import LimitsConfig
from server.terms.types import EngineStats

LABELS = {"model_name": "smol", "engine": "0"}


@pytest.fixture
def own(serve):
    """A server that only this test uses, so that no other test changes its counters."""
    return serve()


def samples(server):
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def values_of(server):
    """A function that returns a value of the metrics at this moment, by name and further labels."""
    found = samples(server)
    return lambda name, **labels: found[name, frozenset((LABELS | labels).items())]


def test_requests_and_tokens_are_counted_exactly(own, encode):
    own.complete(max_tokens=3)
    own.complete(n=2)
    own.chat(stream=True, stop=",")
    prompt = len(encode("The capital of France is"))
    chat_prompt = own.post("/tokenize", {"messages": [{"role": "user", "content": "Hello"}]}).json()["count"]
    value = values_of(own)
    assert value("vllm:prompt_tokens_total") == 3 * prompt + chat_prompt
    assert value("vllm:generation_tokens_total") == 3 + 2 * 8 + 2
    assert value("vllm:request_success_total", finished_reason="length") == 1
    assert value("vllm:request_success_total", finished_reason="stop") == 3
    assert value("vllm:request_success_total", finished_reason="abort") == 0
    assert value("vllm:time_to_first_token_seconds_count") == 4
    assert value("vllm:inter_token_latency_seconds_count") == 2 + 2 * 7 + 1
    assert value("vllm:e2e_request_latency_seconds_count") == 4
    assert value("vllm:request_time_per_output_token_seconds_count") == 4
    assert value("vllm:request_prompt_tokens_sum") == 3 * prompt + chat_prompt
    assert value("vllm:request_generation_tokens_sum") == 3 + 2 * 8 + 2
    assert value("vllm:request_params_n_sum") == 1 + 2 + 1
    assert value("vllm:request_params_n_count") == 3
    assert value("vllm:request_max_num_generation_tokens_sum") == 3 + 8 + 2
    assert value("vllm:request_params_max_tokens_sum") == 3 + 2 * 16 + (512 - chat_prompt)


def test_prompt_tokens_by_source_and_the_engines_times_steps_and_latest_state_are_metrics(own, engine, encode):
    engine.num_cached_tokens, engine.queue_s, engine.prefill_s = 3, 2.0, 3.0
    own.complete(max_tokens=5)
    engine.stats = EngineStats(3, 4, 0.25, 100, 40, 7, 2, num_deferred=1)
    num_tokens, value = len(encode("The capital of France is")), values_of(own)
    assert value("vllm:prompt_tokens_by_source_total", source="local_compute") == num_tokens - 3
    assert value("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 3
    assert value("vllm:request_prefill_kv_computed_tokens_sum") == num_tokens - 3
    assert value("vllm:prompt_tokens_cached_total") == 3
    assert value("vllm:num_requests_running") == 3
    assert value("vllm:num_requests_waiting") == 4
    assert value("vllm:num_requests_waiting_by_reason", reason="capacity") == 3
    assert value("vllm:num_requests_waiting_by_reason", reason="deferred") == 1
    assert value("vllm:kv_cache_usage_perc") == 0.25
    assert value("vllm:prefix_cache_queries_total") == 100
    assert value("vllm:prefix_cache_hits_total") == 40
    assert value("vllm:num_preemptions_total") == 2
    names = ("queue", "prefill", "decode", "inference")
    times = {name: value(f"vllm:request_{name}_time_seconds_sum") for name in names}
    assert (times["queue"], times["prefill"]) == (2.0, 3.0)
    assert 0 < times["decode"] < value("vllm:e2e_request_latency_seconds_sum")
    assert times["inference"] == pytest.approx(3.0 + times["decode"])
    assert {value(f"vllm:request_{name}_time_seconds_count") for name in names} == {1.0}
    assert value("vllm:iteration_tokens_total_count") == value("vllm:iteration_tokens_total_sum") == 5
    bounds = [dict(labels)["le"] for name, labels in samples(own) if name == "vllm:request_prompt_tokens_bucket"]
    assert bounds == ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "+Inf"]


def test_rejected_requests_are_counted_by_the_limit(serve, engine, wait_until):
    server = serve(limits=LimitsConfig(max_queued_requests=1))

    def rejected():
        labels = [
            {"model_name": "smol", "reason": reason} for reason in ("max_num_queued_reqs", "max_num_queued_tokens")
        ]
        return [samples(server)["vllm:admission_rejections_total", frozenset(each.items())] for each in labels]

    assert rejected() == [0, 0]
    engine.holds_after = 1
    with server.send("/v1/completions", {"prompt": "a", "max_tokens": 8}):
        wait_until(lambda: engine.requests)
        assert server.complete().status_code == 503
        assert rejected() == [1, 0]
        engine.holds_after = None


def test_failed_requests_are_counted_and_those_that_never_reach_the_engine_are_not(own, engine):
    engine.fails_after = 2
    own.complete()
    own.complete(temperature=9)
    value = values_of(own)
    assert value("vllm:request_success_total", finished_reason="error") == 1
    assert value("vllm:e2e_request_latency_seconds_count") == 1


def test_the_cache_and_the_start_are_described(own):
    ((_, labels),) = [key for key in samples(own) if key[0] == "vllm:cache_config_info"]
    facts = dict(labels)
    assert int(facts["num_gpu_blocks"]) * int(facts["block_size"]) == int(facts["kv_cache_size_tokens"]) == 4096
    assert float(facts["kv_cache_max_concurrency"]) >= 1
    assert values_of(own)("vllm:engine_startup_time_seconds") == 2.0
    assert samples(own)["vllm_cli:start_phase_seconds", frozenset({("phase", "engine:load_weights")})] == 0.5
    (info,) = (dict(labels) for name, labels in samples(own) if name == "vllm_cli:start_info")
    assert (info["start_mode"], info["reason"], info["compile"]) == ("cold", 'no "standby"', "")


def test_http_requests_are_counted_by_route(own):
    own.complete()
    own.complete(n=0)
    own.get("/v1/models/smol")
    own.get("/nowhere")
    for path in ("/health", "/ping", "/version", "/load", "/metrics", "/", "/status.json"):
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


def test_sizes_of_bodies_are_counted_as_announced(own, wait_until):
    body = b'{"prompt": "The capital of France is", "max_tokens": 3}'
    answer = own.post_bytes("/v1/completions", body)

    def found():
        return {
            name: value for (name, labels), value in samples(own).items() if ("handler", "/v1/completions") in labels
        }

    wait_until(lambda: found().get("http_response_size_bytes_count"))
    assert (found()["http_request_size_bytes_count"], found()["http_request_size_bytes_sum"]) == (1, len(body))
    assert found()["http_response_size_bytes_sum"] >= int(answer.headers["content-length"])


def test_requests_of_disconnected_clients_are_counted_as_aborted(own, engine, wait_until):
    engine.reply = engine.reply * 50
    engine.holds_after = 2
    with own.send("/v1/completions", {"prompt": "a", "max_tokens": 400}):
        wait_until(lambda: engine.requests)
    labels = frozenset({"handler": "/v1/completions", "status": "4xx", "method": "POST"}.items())
    wait_until(lambda: samples(own).get(("http_requests_total", labels)) == 1)
    assert own.parts.running.num_running == 0
    assert values_of(own)("vllm:request_success_total", finished_reason="abort") == 1


def test_rendering_and_waiting_are_metrics(own):
    own.complete()
    own.complete(prompt="word " * 2000, truncate_prompt_tokens=8)
    found = samples(own)
    assert found["vllm_cli:request_render_time_seconds_count", frozenset()] == 2
    for pool, number in (("text", 2), ("mm", 0)):
        labels = frozenset({"pool": pool}.items())
        assert found["vllm_cli:renderer_queue_time_seconds_count", labels] == number
        assert found["vllm_cli:renderer_queue_depth", labels] == 0


async def test_figures_are_logged_until_the_server_is_idle(serve, caplog):
    caplog.set_level(logging.DEBUG, logger="server.operation.engine_monitor")
    parts = serve().parts
    config = LoggingConfig(log_stats_interval_s=0.01)
    logging_stats = asyncio.create_task(log_stats(config, parts.engine, parts.metrics))
    await asyncio.sleep(0)
    parts.metrics.engine.count_prompt(30, num_cached=10)
    parts.metrics.engine.count_generated(7)
    logged: list[logging.LogRecord] = []
    async with asyncio.timeout(60):
        while len(logged) < 3:
            await asyncio.sleep(0.005)
            logged = [record for record in caplog.records if record.name == "server.operation.engine_monitor"]
    logging_stats.cancel()
    first, second, third, *_ = logged
    prompt, generation, *_ = first.args
    assert prompt / generation == pytest.approx(20 / 7), "what was cached was not computed"
    assert (first.levelno, second.levelno, third.levelno) == (logging.INFO, logging.INFO, logging.DEBUG)
    assert second.args[:2] == (0.0, 0.0)
    assert first.getMessage().startswith("Engine 000: Avg prompt throughput: ")


async def test_disable_log_stats_turns_the_line_off(serve):
    parts = serve(disable_log_stats=True).parts
    await log_stats(parts.config.logging, parts.engine, parts.metrics)
