"""Log and metrics of a real server."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli

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


def samples(server: ServerProcess) -> Counter[str]:
    """Name and source of each metric of the model -> its value."""
    families = text_string_to_metric_families(server.ask("/metrics").body.decode())
    found = [s for family in families for s in family.samples if s.labels.get("model_name") == "smol"]
    return Counter({f"{s.name} {s.labels.get('source', '')}".strip(): s.value for s in found})


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
    increase = samples(server)
    increase.subtract(before)
    prompt = 2 * usage.prompt_tokens
    shared = (usage.prompt_tokens - 1) // 16 * 16  # whole blocks, of the first choice's prompt
    expected = {
        "prompt_tokens_total": prompt,
        "generation_tokens_total": 14,
        "prompt_tokens_by_source_total local_compute": prompt - shared,
        "prompt_tokens_by_source_total local_cache_hit": shared,
        "prefix_cache_hits_total": shared,
        "prompt_tokens_cached_total": shared,
        "prefix_cache_queries_total": prompt,
        "request_prefill_kv_computed_tokens_sum": prompt - shared,
        "iteration_tokens_total_sum": prompt - shared + 12,  # no sequence computes its last token
        "num_preemptions_total": 0,
    }
    assert {name: increase[f"vllm:{name}"] for name in expected} == expected


def test_a_missing_model_is_an_error_in_json(tmp_path):
    run = run_cli("serve", tmp_path / "no", "--port", "0", "--log-format", "json")
    assert run.returncode == 3
    last = records(run.stderr)[-1]
    assert last["level"] == "ERROR"
    assert str(tmp_path / "no") in last["message"]
    assert last["code"] == "VC-MODEL-NOT-FOUND"
