"""Log, metrics and status page of a real server."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import ServerProcess
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

PROMPT = "Foxes, hens and 3 other animals lived by the river. " * 5
FLAGS = ("--log-format", "json", "--enable-log-requests", "--disable-access-log-for-endpoints", "/health, /metrics")


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[ServerProcess]:
    """A server that logs JSON, and its statistics five times a second."""
    words = [str(model_path), "--served-model-name", "smol", "--max-model-len", "1024", *FLAGS]
    with ServerProcess(words, environment={"VLLM_LOG_STATS_INTERVAL": "0.2"}) as server:
        yield server


def records(log: str) -> list[dict[str, Any]]:
    """All complete lines of the log."""
    return [json.loads(line) for line in log[: log.rfind("\n") + 1].splitlines()]


def complete(server: ServerProcess, **options: Any) -> Any:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        return client.completions.create(model="smol", prompt=PROMPT, seed=1, **options)


def get(server: ServerProcess, path: str) -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=60) as response:
        body: bytes = response.read()
        return body


def samples(server: ServerProcess) -> dict[tuple[str, frozenset[Any]], float]:
    families = text_string_to_metric_families(get(server, "/metrics").decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_every_log_line_is_json_with_the_process_s_role(server: ServerProcess) -> None:
    server.wait_logged("ready after")
    lines = records(server.log)
    assert all({"time", "level", "logger", "message", "phase", "pid", "role"} <= line.keys() for line in lines)
    assert {line["role"] for line in lines} <= {"api", "engine", "forkserver", "responder"}
    (ready,) = [line for line in lines if line["message"].startswith("ready after")]
    assert (ready["role"], ready["pid"], ready["phase"]) == ("api", server.process.pid, "serving")
    assert ready["time"].endswith("Z")


def test_log_lines_of_a_request_carry_its_id(server: ServerProcess) -> None:
    answer = complete(server, max_tokens=2, extra_headers={"X-Request-Id": "fox-1"})
    assert answer.id == "cmpl-fox-1"

    def of_request() -> list[dict[str, Any]]:
        return [line for line in records(server.log) if line.get("request_id") == "cmpl-fox-1"]

    wait_until(lambda: "uvicorn.access" in [line["logger"] for line in of_request()])
    lines = of_request()
    assert [line["logger"] for line in lines] == ["server.generation.generation", "uvicorn.access"]
    assert (lines[1]["path"], lines[1]["status"]) == ("/v1/completions", 200)


def test_the_access_log_omits_the_disabled_paths(server: ServerProcess) -> None:
    for path in ("/health", "/metrics", "/metrics?x=1", "/version"):
        get(server, path)
    server.wait_logged('"path": "/version"')
    paths = {line["path"].partition("?")[0] for line in records(server.log) if line["logger"] == "uvicorn.access"}
    assert not paths & {"/health", "/metrics"}


def test_statistics_are_logged_while_requests_run(server: ServerProcess) -> None:
    complete(server, max_tokens=64, extra_body={"ignore_eos": True})
    server.wait_logged("Avg generation throughput")
    (line, *_) = [line for line in records(server.log) if "Avg generation throughput" in line["message"]]
    assert (line["level"], line["logger"]) == ("INFO", "server.operation.telemetry")


def test_metrics_count_a_request_exactly(server: ServerProcess) -> None:
    before = samples(server)
    usage = complete(server, n=2, max_tokens=7, extra_body={"ignore_eos": True, "cache_salt": "mine"}).usage
    assert (usage.completion_tokens, usage.prompt_tokens > 3) == (14, True)
    after = samples(server)

    def increase(name: str, **labels: str) -> float:
        key = (f"vllm:{name}", frozenset({"model_name": "smol", "engine": "0", **labels}.items()))
        return after[key] - before[key]

    prompt = 2 * usage.prompt_tokens
    shared = (usage.prompt_tokens - 1) // 16 * 16  # whole blocks, of the first choice's prompt
    assert increase("generation_tokens_total") == 14
    assert increase("prompt_tokens_total") == prompt
    assert increase("prompt_tokens_by_source_total", source="local_compute") == prompt - shared
    assert increase("prompt_tokens_by_source_total", source="local_cache_hit") == shared
    assert increase("request_success_total", finished_reason="length") == 2
    assert increase("request_success_total", finished_reason="stop") == 0
    for name, count, total in (
        ("request_prompt_tokens", 2, prompt),
        ("request_generation_tokens", 2, 14),
        ("request_prefill_kv_computed_tokens", 2, prompt - shared),
        ("request_params_max_tokens", 2, 14),
        ("request_params_n", 1, 2),
        ("request_max_num_generation_tokens", 1, 7),
        ("request_num_preemptions", 2, 0),
    ):
        assert (increase(f"{name}_count"), increase(f"{name}_sum")) == (count, total), name
    for name in ("time_to_first_token", "e2e_request_latency", "request_time_per_output_token"):
        assert increase(f"{name}_seconds_count") == 2
        assert increase(f"{name}_seconds_sum") > 0
    for name in ("queue", "prefill", "decode", "inference"):
        assert increase(f"request_{name}_time_seconds_count") == 2
    assert increase("inter_token_latency_seconds_count") == 12
    assert increase("iteration_tokens_total_sum") == prompt - shared + 12, "no sequence computes its last token"
    assert increase("num_preemptions_total") == 0


def test_prefix_cache_hits_are_counted(server: ServerProcess) -> None:
    complete(server, max_tokens=1)
    before = samples(server)
    usage = complete(server, max_tokens=1).usage
    after = samples(server)

    def increase(name: str, **labels: str) -> float:
        key = (f"vllm:{name}", frozenset({"model_name": "smol", "engine": "0", **labels}.items()))
        return after[key] - before[key]

    hits = increase("prefix_cache_hits_total")
    assert hits == (usage.prompt_tokens - 1) // 16 * 16, "whole blocks, without the last token"
    assert increase("prefix_cache_queries_total") == usage.prompt_tokens
    assert increase("prompt_tokens_cached_total") == hits
    assert increase("prompt_tokens_cached_by_source_total", source="device") == hits
    assert increase("prompt_tokens_by_source_total", source="local_cache_hit") == hits
    assert increase("prompt_tokens_by_source_total", source="local_compute") == usage.prompt_tokens - hits


def test_the_status_page_shows_the_same_figures(server: ServerProcess) -> None:
    assert b"<!doctype html>" in get(server, "/")
    status = json.loads(get(server, "/status.json"))
    assert (status["status"], status["model"], status["start"]["outcome"]) == ("ready", "smol", "ready")
    assert status["live"]["generation_tokens"] == server.metric("vllm:generation_tokens_total")
    assert status["live"]["engine_rss_bytes"] > 50 << 20


def test_a_start_that_times_out_logs_json(model_path: Path) -> None:
    """The stacks of all threads are one line."""
    command = [sys.executable, "-m", "vllm_cli", "serve", str(model_path), "--port", str(free_port())]
    limit = ["--startup-timeout", "0.05", "--log-format", "json"]
    run = subprocess.run([*command, *limit], capture_output=True, text=True, timeout=200)
    assert run.returncode == 3
    lines = records(run.stderr)
    assert any("--startup-timeout 0.05 s" in line["message"] for line in lines)
    assert any("Thread 0x" in line["message"] for line in lines)


def test_a_missing_model_is_an_error_in_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_cli", "serve", str(tmp_path / "no"), "--port", str(free_port())]
    run = subprocess.run([*command, "--log-format", "json"], capture_output=True, text=True, timeout=200)
    assert run.returncode == 3
    last = records(run.stderr)[-1]
    assert last["level"] == "ERROR"
    assert str(tmp_path / "no") in last["message"]
