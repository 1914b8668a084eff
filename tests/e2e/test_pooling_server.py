"""Real servers with tiny pooling models."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess
from tests.server.engine.pooling.small_pooling import hidden_states, unit
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

NAME = "tiny"
TEXTS = ["hello world", "the capital of france is paris", "the cat sat on the mat and the dog sat on the cat", "a"]
IDS = {"hello world": [2, 5, 6, 3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    save_pooler(folder, "bert")
    save_sentence_files(folder)
    with ServerProcess([str(folder), "--served-model-name", NAME, "--runner", "pooling"]) as running:
        yield running


def test_embeddings_equal_transformers(client, folder):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    embedding = client.embeddings.create(model=NAME, input="hello world").data[0].embedding
    expected = unit(hidden_states(model, IDS["hello world"]).mean(0))
    assert embedding == pytest.approx(expected.tolist(), abs=1e-5)


def test_hundreds_of_inputs_keep_their_order(client, server):
    inputs = [TEXTS[index % 4] for index in range(300)]
    alone = [client.embeddings.create(model=NAME, input=text).data[0].embedding for text in TEXTS]
    answer = client.embeddings.create(model=NAME, input=inputs)
    assert [item.index for item in answer.data] == list(range(300))
    for index, item in enumerate(answer.data):
        assert item.embedding == pytest.approx(alone[index % 4], abs=1e-5)
    assert server.metric("vllm:request_success_total", finished_reason="stop") >= 304
    assert server.metric("vllm:num_requests_waiting") == 0
