"""Log and metrics of a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from tests.support.http_client import ask

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
    with server.openai() as client:
        return client.completions.create(model="smol", prompt=PROMPT, seed=1, **options)


Samples = dict[tuple[str, frozenset[Any]], float]


def samples(server: ServerProcess) -> Samples:
    families = text_string_to_metric_families(ask(f"{server.url}/metrics").body.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def increases(before: Samples, after: Samples) -> Callable[..., float]:
    """Returns a function that returns a metric's increase, given its name and labels."""

    def increase(name: str, **labels: str) -> float:
        key = (f"vllm:{name}", frozenset({"model_name": "smol", "engine": "0", **labels}.items()))
        return after[key] - before[key]

    return increase


def test_every_log_line_is_json_with_the_process_s_role(server):
    server.wait_logged("ready after")
    lines = records(server.log)
    assert all({"time", "level", "logger", "message", "phase", "pid", "role"} <= line.keys() for line in lines)
    assert {line["role"] for line in lines} <= {"api", "engine", "forkserver", "responder"}
    (ready,) = [line for line in lines if line["message"].startswith("ready after")]
    assert (ready["role"], ready["pid"], ready["phase"]) == ("api", server.process.pid, "serving")
    assert ready["time"].endswith("Z")


def test_metrics_count_what_the_engine_has_computed(server):
    """`server/http/test_http_metrics.py` has all metrics of a request, with a scripted engine."""
    before = samples(server)
    usage = complete(server, n=2, max_tokens=7, extra_body={"ignore_eos": True, "cache_salt": "mine"}).usage
    assert (usage.completion_tokens, usage.prompt_tokens > 3) == (14, True)
    increase = increases(before, samples(server))
    prompt = 2 * usage.prompt_tokens
    shared = (usage.prompt_tokens - 1) // 16 * 16  # whole blocks, of the first choice's prompt
    assert (increase("prompt_tokens_total"), increase("generation_tokens_total")) == (prompt, 14)
    assert increase("prompt_tokens_by_source_total", source="local_compute") == prompt - shared
    assert increase("prompt_tokens_by_source_total", source="local_cache_hit") == shared
    assert increase("prefix_cache_hits_total") == increase("prompt_tokens_cached_total") == shared
    assert increase("prefix_cache_queries_total") == prompt
    assert increase("request_prefill_kv_computed_tokens_sum") == prompt - shared
    assert increase("iteration_tokens_total_sum") == prompt - shared + 12, "no sequence computes its last token"
    assert increase("num_preemptions_total") == 0


def test_a_missing_model_is_an_error_in_json(tmp_path):
    run = run_cli("serve", tmp_path / "no", "--port", "0", "--log-format", "json")
    assert run.returncode == 3
    last = records(run.stderr)[-1]
    assert last["level"] == "ERROR"
    assert str(tmp_path / "no") in last["message"]
    assert last["code"] == "VC-MODEL-NOT-FOUND"
