"""A pooling model returns the numbers of `vllm serve`. Ctrl-C stops it in the same way."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_engine.conftest import StartVllm
from tests.vllm_engine.vllm_server import VllmServer

TEXTS = ["hello world", "the capital of france is paris", "the cat sat on the mat and the dog sat on the cat", "a"]
SHAPE = {"hidden_size": 128, "num_attention_heads": 4}
"""vLLM's attention on CPU needs a head size of 32 or more."""


@pytest.fixture(scope="module")
def bert(workplace: Path) -> Path:
    from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

    folder = workplace / "bert"
    folder.mkdir()
    save_pooler(folder, "bert", **SHAPE)
    save_sentence_files(folder)
    return folder


@pytest.fixture(scope="module")
def answers(start_vllm: StartVllm, bert: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """The answers with both launchers, which run one after the other."""
    recorded = {}
    for launcher in ("plain", "ours"):
        with start_vllm(launcher, "--enforce-eager", "--dtype", "float32", model=bert) as server:
            recorded[launcher] = _ask(server.wait_ready()) | {"exit code": server.terminate(signal.SIGINT)}
    yield recorded


def _ask(server: VllmServer) -> dict[str, Any]:
    embedded = server.post("/v1/embeddings", input=TEXTS)
    return {
        "embeddings": [entry["embedding"] for entry in embedded["data"]],
        "usage": embedded["usage"],
        "similarity": [row["score"] for row in server.post("/score", text_1=TEXTS[0], text_2=TEXTS[1:])["data"]],
        "openapi": server.get("/openapi.json"),
    }


@pytest.mark.parametrize("what", ["embeddings", "similarity"])
def test_numbers_equal_those_of_vllm_serve(answers, what):
    expected = answers["plain"][what]
    assert len(expected) >= len(TEXTS) - 1
    for mine, theirs in zip(answers["ours"][what], expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("what", ["usage", "openapi", "exit code"])
def test_usage_schema_and_exit_code_are_equal(answers, what):
    assert answers["ours"][what] == answers["plain"][what]
