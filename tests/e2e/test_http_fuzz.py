"""Fuzzed requests to all routes get a status below 500, and the server stays healthy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.process_tree import wait_process
from tests.e2e.request_fuzzer import MODEL, RequestFuzzer, send_all
from tests.e2e.server_process import ServerProcess
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files
from tests.support.http_client import ask
from tests.support.waiting import wait_until

TEXT_ROUTES = (
    "/v1/responses",
    *("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"),
    *("/tokenize", "/detokenize"),
)
POOLING_ROUTES = ("/v1/embeddings", "/pooling", "/classify", "/score", "/rerank", "/tokenize")
SETTINGS = (
    *("--served-model-name", MODEL, "--max-model-len", "128", "--override-generation-config.max_new_tokens", "4"),
    *("--disable-uvicorn-access-log", "--enable-prompt-embeds"),
)


@pytest.fixture(scope="module")
def text_server(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server whose model reasons and calls tools."""
    parsers = ("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with ServerProcess([str(tiny_llama), *SETTINGS, *parsers]) as server:
        yield server


@pytest.fixture(scope="module")
def pooling_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("bert")
    save_pooler(folder, "bert")
    save_sentence_files(folder)
    arguments = [str(folder), "--served-model-name", MODEL, "--runner", "pooling", "--disable-uvicorn-access-log"]
    with ServerProcess(arguments) as server:
        yield server


def test_fuzzed_requests_for_text_are_answered(text_server):
    fuzz(text_server, range(1200), TEXT_ROUTES)


def test_fuzzed_requests_for_vectors_are_answered(pooling_server):
    fuzz(pooling_server, range(600), POOLING_ROUTES)


def fuzz(server: ServerProcess, seeds: range, paths: tuple[str, ...]) -> None:
    """Sends the requests, then checks the server."""
    fuzzer = RequestFuzzer(ask(f"{server.url}/openapi.json").json, *paths)
    engine = wait_process(server, "engine")
    by_status, failures = send_all(server.port, fuzzer.request, seeds)
    assert failures == []
    for status in (200, 400):  # if validation rejected all requests, the fuzzer would find nothing
        assert by_status[status] >= len(seeds) / 20, by_status
    assert server.health() == 200
    assert wait_process(server, "engine") == engine
    wait_until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0)
