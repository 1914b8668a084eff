"""/metrics follows the format's rules and vLLM's names. Dashboard, alerts and docs name existing metrics."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse_text

from base.lifecycle import GRAPHS_CAPTURED, GRAPHS_GIVEN_UP, GRAPHS_TOTAL
from router.http.model_list import PoolListing
from router.model_entry import ModelEntry
from server.operation.metrics.collectors import image_families
from server.terms.bounded_cache import BoundedCache
from tests.router.http.small_router import SmallPool

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
DASHBOARD = ROOT / "deploy" / "grafana" / "vllm-cli.json"
ALERTS = ROOT / "deploy" / "grafana" / "alerts.yaml"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}

GAUGES = """num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc
gpu_cache_usage_perc engine_startup_time_seconds cache_config_info"""
COUNTERS = """prompt_tokens generation_tokens prompt_tokens_by_source prompt_tokens_cached num_preemptions
request_success prefix_cache_queries prefix_cache_hits mm_cache_queries mm_cache_hits"""
HISTOGRAMS = """time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds request_prefill_time_seconds
request_decode_time_seconds request_prompt_tokens request_generation_tokens request_max_num_generation_tokens
request_params_n request_params_max_tokens request_prefill_kv_computed_tokens iteration_tokens_total
request_num_preemptions"""
VLLM_TYPES = {
    f"vllm:{name}": kind
    for kind, names in (("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS))
    for name in names.split()
}
EXTRA_LABELS = {
    "vllm:num_requests_waiting_by_reason": {"reason": {"capacity", "deferred"}},
    "vllm:prompt_tokens_by_source": {"source": {"local_compute", "local_cache_hit"}},
    "vllm:request_success": {"finished_reason": {"stop", "length", "abort", "error"}},
}


@pytest.fixture
def served(serve: Any) -> Any:
    """A server that has served requests of all kinds."""
    server = serve()
    server.complete(max_tokens=3)
    server.chat(stream=True)
    server.complete(n=0)
    server.get("/nowhere")
    return server


def families(server: Any) -> dict[str, Any]:
    return {family.name: family for family in parse_text(server.get("/metrics").text)}


def test_the_families_of_vllm_are_there_once_with_its_type(served):
    found = families(served)
    everything = [(sample.name, *sorted(sample.labels.items())) for f in found.values() for sample in f.samples]
    assert len(everything) == len(set(everything)), "no series is repeated"
    assert {name: found[name].type for name in VLLM_TYPES if name in found} == VLLM_TYPES
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "python_info"} <= found.keys()


def test_labels_are_vllms(served):
    found = families(served)
    for name in VLLM_TYPES.keys() - {"vllm:cache_config_info"}:
        extra = EXTRA_LABELS.get(name, {})
        for sample in found[name].samples:
            labels = sample.labels.keys() - ({"le"} if sample.name.endswith("_bucket") else set())
            assert labels == {"model_name", "engine"} | extra.keys(), name
        for label, values in extra.items():
            assert {sample.labels[label] for sample in found[name].samples} == values


@pytest.fixture
def exposed(served: Any) -> set[str]:
    """The names of a server's and a router's metrics, and of these metrics' samples."""
    router = PoolListing(SmallPool([ModelEntry(name="m")]), version="9.9", needs_key=False)  # type: ignore[arg-type]
    everything = [
        *families(served).values(),
        *parse_text(router.metrics(None).body.decode()),
        *image_families("m", BoundedCache[str, bytes](1, len)),
    ]
    names = {family.name + suffix for family in everything for suffix in ("", *SUFFIXES.get(family.type, ()))}
    return names | {sample.name for family in everything for sample in family.samples}


_OF_VLLM = {GRAPHS_CAPTURED[0], GRAPHS_TOTAL[0], GRAPHS_GIVEN_UP[0]}
"""Own metrics that only starts of vLLM have."""


def test_every_query_of_the_dashboard_and_the_alerts_names_metrics_that_exist(exposed):
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    queries += [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len(queries) > 50
    for query in queries:
        metrics = re.findall(r"\b(?:vllm|vllm_cli|http|process)[_:][a-z0-9_:]+", query)
        assert metrics, query
        assert set(metrics) <= exposed | _OF_VLLM, query


def test_every_metric_that_the_docs_name_exists_and_every_own_one_has_a_row(exposed):
    rows = set(_metrics_of_tables((DOCS / "observability.md").read_text()))
    assert len(rows) > 60
    named = {name for page in DOCS.rglob("*.md") for name in re.findall(r"vllm_cli:[a-z_]+[a-z]", page.read_text())}
    assert (rows | named) - exposed - _OF_VLLM - {"vllm_cli:router", "vllm_cli:model"} == set()
    own = {re.sub("_(total|bucket|sum|count|created)$", "", name) for name in exposed if "vllm_cli:" in name}
    assert own - {name.removesuffix("_total") for name in rows} == set()


def _metrics_of_tables(page: str) -> Iterator[str]:
    """Yields names in the first column of tables with types. A head that ends with a colon is a prefix."""
    prefix: str | None = None
    for line in page.splitlines():
        cell = line.split(" | ")[0]
        if not line.startswith("|"):
            prefix = None
        elif line.split(" | ")[1:2] == ["type"]:
            prefix = cell.strip("| `") if cell.endswith(":`") else ""
        elif prefix is not None:
            yield from itertools.chain(*(_spelled_out(prefix + name) for name in re.findall(r"`([^`]+)`", cell)))


def _spelled_out(name: str) -> Iterator[str]:
    """Yields the names that a cell means. Braces at its end have labels. Other braces list parts of names.

    A name such as `process_*` yields nothing, because it means any name.
    """
    name = re.sub(r"\{[^}]*\}$", "", name)
    head, _, rest = name.partition("{")
    parts, _, tail = rest.partition("}")
    if not name.endswith("*"):
        yield from (head + part + tail for part in parts.split(","))
