"""The pooling endpoints over HTTP, with real routes, renderer and pooling core, and with tiny models."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.server.engine.pooling.tiny_poolers import edit_config, hidden_states, logits, save_colbert, save_pooler, unit
from tests.server.http.conftest import LiveServer, assert_rejected
from tests.server.http.pooled_engine import NAME, serve_folder

pytestmark = pytest.mark.thorough

TEXTS = ["hello world", "the capital of france is paris", "the weather is sunny today and the cat sat on the mat", "a"]


@pytest.fixture
def serve():
    """A function that starts a server for one test, with the model in a folder."""
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(serve_folder(folder, **options))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> PreTrainedModel:
    model = save_pooler(bert_folder, "bert")
    edit_config(bert_folder, matryoshka_dimensions=[8, 16])
    return model


@pytest.fixture(scope="module")
def embedder(bert_folder: Path, bert: PreTrainedModel) -> Iterator[LiveServer]:
    with serve_folder(bert_folder) as server:
        yield server


def _encode(server: LiveServer, text: str, pair: str | None = None) -> dict[str, list[int]]:
    return dict(server.parts.renderer.tokenizer.loaded(text, text_pair=pair))  # type: ignore[attr-defined]


def _embedding(server: LiveServer, model: PreTrainedModel, text: str) -> torch.Tensor:
    return unit(hidden_states(model, _encode(server, text)["input_ids"])[0])


def _assert_close(result: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(result), expected, atol=2e-5, rtol=1e-4)


def test_each_text_has_an_embedding(embedder, bert):
    engine: Any = embedder.engine
    engine.batches.clear()
    answer = embedder.post("/v1/embeddings", {"model": NAME, "input": TEXTS}).json()
    assert engine.batches == [4], "its inputs are one batch"
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    for text, item in zip(TEXTS, answer["data"], strict=True):
        assert item["object"] == "embedding"
        _assert_close(item["embedding"], _embedding(embedder, bert, text))
    ids = _encode(embedder, TEXTS[1])["input_ids"]
    given = embedder.post("/v1/embeddings", {"input": [ids, [2, 3]]}).json()
    _assert_close(given["data"][0]["embedding"], _embedding(embedder, bert, TEXTS[1]))
    assert given["usage"]["prompt_tokens"] == len(ids) + 2


def test_special_tokens_and_activation_may_be_left_out(embedder, bert):
    body = {"input": "hello world", "add_special_tokens": False, "use_activation": False}
    answer = embedder.post("/v1/embeddings", body).json()
    assert answer["usage"]["prompt_tokens"] == 2
    ids = _encode(embedder, "hello world")["input_ids"][1:-1]
    _assert_close(answer["data"][0]["embedding"], hidden_states(bert, ids)[0])


@pytest.mark.parametrize(("side", "kept"), [(None, "the capital"), ("right", "the capital"), ("left", "is paris")])
def test_truncation_keeps_special_tokens_and_the_requested_side(embedder, bert, side, kept):
    body = {"input": TEXTS[1], "truncate_prompt_tokens": 4} | ({"truncation_side": side} if side else {})
    answer = embedder.post("/v1/embeddings", body).json()
    assert answer["usage"]["prompt_tokens"] == 4
    _assert_close(answer["data"][0]["embedding"], _embedding(embedder, bert, kept))


def test_dimensions_need_matryoshka_which_hf_overrides_may_declare(serve, tmp_path):
    save_pooler(tmp_path, "bert")
    body = {"input": "a", "dimensions": 4}
    assert_rejected(serve(tmp_path).post("/v1/embeddings", body), "dimensions", "does not support Matryoshka")
    server = serve(tmp_path, hf_overrides={"matryoshka_dimensions": [4]})
    assert len(server.post("/v1/embeddings", body).json()["data"][0]["embedding"]) == 4


def test_classes_have_labels_and_probabilities(serve, tmp_path):
    labels = {0: "good", 1: "bad", 2: "ugly"}
    model = save_pooler(tmp_path, "bert", "classify", id2label=labels)
    server = serve(tmp_path)
    answer = server.post("/classify", {"input": TEXTS}).json()
    assert answer["id"].startswith("classify-")
    assert list(answer) == ["id", "object", "created", "model", "data", "usage"]
    for index, (text, item) in enumerate(zip(TEXTS, answer["data"], strict=True)):
        expected = logits(model, _encode(server, text)["input_ids"]).softmax(-1)
        assert item["index"] == index
        assert item["label"] == labels[int(expected.argmax())]
        assert item["num_classes"] == 3
        _assert_close(item["probs"], expected)
    missing = server.post("/score", {"text_1": "a", "text_2": "b"})
    assert (missing.status_code, missing.json()["detail"]) == (404, "Not Found")


def _cross_score(server: LiveServer, model: PreTrainedModel, first: str, second: str) -> float:
    encoded = _encode(server, first, second)
    return float(logits(model, encoded["input_ids"], encoded["token_type_ids"]).sigmoid())


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, PreTrainedModel]]:
    folder = tmp_path_factory.mktemp("cross")
    model = save_pooler(folder, "bert", "classify", num_labels=1)
    with serve_folder(folder) as server:
        yield server, model


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_a_cross_encoder_scores_one_text_against_many(cross_encoder, path):
    server, model = cross_encoder
    answer = server.post(path, {"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
    assert answer["id"].startswith("score-")
    assert [item["object"] for item in answer["data"]] == ["score"] * 3
    expected = [_cross_score(server, model, TEXTS[0], text) for text in TEXTS[1:]]
    assert [item["score"] for item in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert answer["usage"]["prompt_tokens"] == sum(len(_encode(server, TEXTS[0], t)["input_ids"]) for t in TEXTS[1:])


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_puts_the_most_relevant_first(cross_encoder, path):
    server, model = cross_encoder
    body = {"query": TEXTS[0], "documents": TEXTS[1:], "return_documents": True}
    answer = server.post(path, body).json()
    assert list(answer) == ["id", "model", "usage", "results"]
    expected = {i: _cross_score(server, model, TEXTS[0], text) for i, text in enumerate(TEXTS[1:])}
    order = sorted(expected, key=lambda i: -expected[i])
    assert [result["index"] for result in answer["results"]] == order
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)
        assert result["document"] == {"text": TEXTS[1 + result["index"]], "multi_modal": None}
    best = server.post(path, body | {"top_n": 1}).json()
    assert [result["index"] for result in best["results"]] == order[:1]
    assert set(answer["usage"]) == {"prompt_tokens", "total_tokens"}


def test_documents_may_be_cut_before_they_are_paired(cross_encoder):
    server, model = cross_encoder
    answer = server.post("/score", {"text_1": "hello", "text_2": TEXTS[2], "max_tokens_per_doc": 3}).json()
    assert answer["data"][0]["score"] == pytest.approx(_cross_score(server, model, "hello", "the weather is"), abs=1e-5)


def test_the_operators_template_builds_the_pairs(serve, tmp_path):
    model = save_pooler(tmp_path, "llama", "classify", num_labels=1)
    template = "{{ instruction or 'no' }} {{ messages[0]['content'] }} and {{ messages[1]['content'] }}"
    server = serve(tmp_path, renderer={"chat_template": template})
    body = {"query": "cat", "documents": ["dog"], "instruction": "yes"}
    score = server.post("/rerank", body).json()["results"][0]["relevance_score"]
    hidden = hidden_states(model.model, _encode(server, "yes cat and dog")["input_ids"])[-1]
    assert score == pytest.approx(float(model.score(hidden).detach().sigmoid()), abs=1e-5)


def test_a_bi_encoder_scores_by_cosine_similarity(embedder, bert):
    answer = embedder.post("/score", {"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
    vectors = [_embedding(embedder, bert, text) for text in TEXTS]
    assert [item["score"] for item in answer["data"]] == pytest.approx(
        [float(vectors[0] @ other) for other in vectors[1:]], abs=1e-5
    )
    assert answer["usage"]["prompt_tokens"] == sum(len(_encode(embedder, text)["input_ids"]) for text in TEXTS)
    pairs = embedder.post("/score", {"text_1": TEXTS[:2], "text_2": TEXTS[2:]}).json()["data"]
    assert pairs[1]["score"] == pytest.approx(float(vectors[1] @ vectors[3]), abs=1e-5)


def test_late_interaction_returns_scores(serve, tmp_path):
    model, linear = save_colbert(tmp_path)
    server = serve(tmp_path)
    answer = server.post("/score", {"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
    query, *documents = (unit(hidden_states(model, _encode(server, t)["input_ids"]) @ linear.T) for t in TEXTS)
    expected = [float((query @ document.T).amax(-1).sum()) for document in documents]
    assert [item["score"] for item in answer["data"]] == pytest.approx(expected, abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == sum(len(_encode(server, text)["input_ids"]) for text in TEXTS)
    ranked = server.post("/rerank", {"query": TEXTS[0], "documents": TEXTS[1:]}).json()["results"]
    assert [result["index"] for result in ranked] == sorted(range(3), key=lambda index: -expected[index])


def test_a_disconnected_client_aborts_all_its_prompts(embedder, wait_until):
    engine: Any = embedder.engine
    engine.is_held, engine.aborted = True, []
    num_before = len(engine.requests)
    try:
        with embedder.send("/v1/embeddings", {"input": TEXTS}):
            wait_until(lambda: len(engine.requests) == num_before + 4)
            assert not engine.aborted
        wait_until(lambda: len(engine.aborted) == 4)
        wait_until(lambda: not engine.core.has_work)
    finally:
        engine.is_held = False


def test_prompts_are_counted(serve, bert_folder, bert):
    server = serve(bert_folder)
    response = server.post("/v1/embeddings", {"input": TEXTS})
    lines = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line[0] != "#")
    labels = f'engine="0",model_name="{NAME}"'
    assert float(lines[f"vllm:prompt_tokens_total{{{labels}}}"]) == response.json()["usage"]["prompt_tokens"]
    assert float(lines[f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="{NAME}"}}']) == 4
    assert float(lines[f"vllm:e2e_request_latency_seconds_count{{{labels}}}"]) == 4
    assert float(lines[f"vllm:generation_tokens_total{{{labels}}}"]) == 0
    assert float(lines[f"vllm:num_requests_running{{{labels}}}"]) == 0
    assert {"queue", "render", "prefill"} <= {
        part.split(";")[0] for part in response.headers["server-timing"].split(", ")
    }
