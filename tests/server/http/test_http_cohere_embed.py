"""/v2/embed over HTTP: real routes, renderer and pooling core, a tiny BERT."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.engine.pooling.tiny_poolers import MAX_LEN, edit_config, save_pooler
from tests.server.http.conftest import LiveServer
from tests.server.http.test_http_pooling import TEMPLATE, TEXTS, serve_folder

PROMPTS = {"query": "what is ", "document": "text "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save_pooler(path, "bert")
    edit_config(path, matryoshka_dimensions=[8, 16])
    (path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return path


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[LiveServer]:
    with serve_folder(folder) as server:
        yield server


@pytest.fixture
def serve() -> Iterator[Callable[..., LiveServer]]:
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(serve_folder(folder, **options))


def _floats(server: LiveServer, texts: list[str], **fields: Any) -> list[list[float]]:
    answer = server.post("/v1/embeddings", {"input": texts} | fields).json()
    return [item["embedding"] for item in answer["data"]]


def _embed(server: LiveServer, **fields: Any) -> dict[str, Any]:
    response = server.post("/v2/embed", fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_texts_have_the_vectors_of_openai(embedder: LiveServer) -> None:
    answer = _embed(embedder, model="tiny", texts=TEXTS)
    assert list(answer) == ["id", "embeddings", "texts", "meta", "response_type"]
    assert answer["id"].startswith("embd-")
    assert answer["embeddings"] == {"float": _floats(embedder, TEXTS)}
    assert answer["texts"] == TEXTS
    num_tokens = embedder.post("/v1/embeddings", {"input": TEXTS}).json()["usage"]["prompt_tokens"]
    assert answer["meta"]["billed_units"] == {"input_tokens": num_tokens, "image_tokens": 0}
    assert answer["response_type"] == "embeddings_by_type"


def test_every_encoding_has_the_same_numbers(embedder: LiveServer) -> None:
    kinds = ["float", "base64", "binary", "ubinary"]
    found = _embed(embedder, texts=TEXTS, embedding_types=kinds)["embeddings"]
    floats = np.array(found["float"], np.float32)
    assert [np.frombuffer(base64.b64decode(text), "<f4").tolist() for text in found["base64"]] == floats.tolist()
    bits = np.packbits(floats >= 0, axis=1)
    assert found["ubinary"] == bits.tolist()
    assert found["binary"] == (bits.astype(int) - 128).tolist()


def test_input_type_puts_the_models_text_first(embedder: LiveServer) -> None:
    found = _embed(embedder, texts=TEXTS, input_type="query")["embeddings"]["float"]
    assert found == _floats(embedder, [PROMPTS["query"] + text for text in TEXTS])


def test_input_type_is_the_system_message_of_a_chat_template(serve: Callable[..., LiveServer], folder: Path) -> None:
    server = serve(folder, renderer={"chat_template": TEMPLATE})
    messages = [{"role": "system", "content": PROMPTS["query"]}, {"role": "user", "content": "hello"}]
    expected = server.post("/v1/embeddings", {"messages": messages}).json()["data"][0]["embedding"]
    assert _embed(server, texts=["hello"], input_type="query")["embeddings"]["float"] == [expected]
    parts = [{"content": [{"type": "text", "text": "hello"}]}]
    assert _embed(server, inputs=parts, input_type="query")["embeddings"]["float"] == [expected]


def test_dimensions_shorten_vectors(embedder: LiveServer) -> None:
    found = _embed(embedder, texts=TEXTS, output_dimension=8)["embeddings"]["float"]
    assert found == _floats(embedder, TEXTS, dimensions=8)


def test_truncation_keeps_the_side_that_is_wanted(embedder: LiveServer) -> None:
    long = ["world " + "cat " * MAX_LEN + "dog"]
    end, start = (_embed(embedder, texts=long, truncate=side)["embeddings"]["float"] for side in ("END", "START"))
    assert end == _floats(embedder, long, truncate_prompt_tokens=-1)
    assert start == _floats(embedder, long, truncate_prompt_tokens=-1, truncation_side="left")
    assert end != start
    short = _embed(embedder, texts=long, max_tokens=4)
    assert short["meta"]["billed_units"]["input_tokens"] == 4


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "texts", "Exactly one of texts, images, or inputs"),
        ({"texts": []}, "texts", "must be non-empty"),
        ({"texts": ["a"], "images": ["b"]}, "texts", "Exactly one"),
        ({"images": ["data:image/png;base64,AAAA"]}, "images", "does not embed images"),
        ({"texts": ["a"], "input_type": "other"}, "input_type", "Supported values: document, query"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types", "expected one of"),
        ({"texts": ["a"], "output_dimension": 9}, "dimensions", "only supports Matryoshka dimensions"),
        ({"texts": ["cat " * 100], "truncate": "NONE"}, "texts", "maximum context length"),
        ({"texts": ["cat cat cat"], "truncate": "NONE", "max_tokens": 4}, "max_tokens", "exceeds max_tokens=4"),
        ({"texts": ["a"], "max_tokens": 65}, "truncate_prompt_tokens", "greater than max_model_len"),
        ({"inputs": [{"content": [{"type": "text"}]}]}, "inputs", "text"),
    ],
)  # fmt: skip
def test_bad_requests_name_the_field(embedder: LiveServer, fields: dict[str, Any], param: str, words: str) -> None:
    response = embedder.post("/v2/embed", fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"].startswith(param)
    assert words in error["message"]
