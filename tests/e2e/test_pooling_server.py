"""Real servers with tiny pooling models."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.e2e.server_process import ServerProcess
from tests.server.engine.pooling.small_pooling import hidden_states, logits, unit
from tests.server.engine.pooling.tiny_poolers import save_colbert, save_pooler, save_sentence_files

pytestmark = pytest.mark.thorough

NAME = "tiny"
TEXTS = ["hello world", "the capital of france is paris", "the cat sat on the mat and the dog sat on the cat", "a"]
IDS = {"hello world": [2, 5, 6, 3]}


def _post(server: ServerProcess, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    save_pooler(folder, "bert")
    save_sentence_files(folder)
    with ServerProcess([str(folder), "--served-model-name", NAME, "--runner", "pooling"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_embeddings_equal_transformers(client: OpenAI, folder: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    embedding = client.embeddings.create(model=NAME, input="hello world").data[0].embedding
    expected = unit(hidden_states(model, IDS["hello world"]).mean(0))
    assert embedding == pytest.approx(expected.tolist(), abs=1e-5)


def test_hundreds_of_inputs_keep_their_order(client: OpenAI, server: ServerProcess) -> None:
    inputs = [TEXTS[index % 4] for index in range(300)]
    alone = [client.embeddings.create(model=NAME, input=text).data[0].embedding for text in TEXTS]
    answer = client.embeddings.create(model=NAME, input=inputs)
    assert [item.index for item in answer.data] == list(range(300))
    for index, item in enumerate(answer.data):
        assert item.embedding == pytest.approx(alone[index % 4], abs=1e-5)
    assert server.metric("vllm:request_success_total", finished_reason="stop") >= 304
    assert server.metric("vllm:num_requests_waiting") == 0


def test_completions_are_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not support Completions API"):
        client.completions.create(model=NAME, prompt="hello")


def test_input_up_to_the_context_length_is_accepted(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 32 tokens"):
        client.embeddings.create(model=NAME, input="cat " * 40)
    assert client.embeddings.create(model=NAME, input="cat " * 30).usage.prompt_tokens == 32


def test_a_cross_encoder_reranks(tmp_path: Path) -> None:
    model = save_pooler(tmp_path, "bert", "classify", num_labels=1)
    with ServerProcess([str(tmp_path), "--served-model-name", NAME]) as server:
        answer = _post(server, "/v1/rerank", {"query": "hello", "documents": ["world", "the world"], "top_n": 2})
    expected = {
        0: float(logits(model, [2, 5, 3, 6, 3], [0, 0, 0, 1, 1]).sigmoid()),
        1: float(logits(model, [2, 5, 3, 7, 6, 3], [0, 0, 0, 1, 1, 1]).sigmoid()),
    }
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)


def test_late_interaction_scores_equal_transformers(tmp_path: Path) -> None:
    model, linear = save_colbert(tmp_path)
    with ServerProcess([str(tmp_path), "--served-model-name", NAME]) as server:
        answer = _post(server, "/score", {"text_1": "hello world", "text_2": ["hello world", "world"]})
    query = unit(hidden_states(model, IDS["hello world"]) @ linear.T)
    other = unit(hidden_states(model, [2, 6, 3]) @ linear.T)
    expected = [float((query @ document.T).amax(-1).sum()) for document in (query, other)]
    assert [item["score"] for item in answer["data"]] == pytest.approx(expected, abs=1e-4)
