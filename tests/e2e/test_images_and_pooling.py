"""Real servers with tiny vision and pooling models, used through the `openai` client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.server.engine.features.tiny_vlm import save_vlm
from tests.server.engine.features.vlm_reference import expected_answer, image_messages, image_url
from tests.server.engine.pooling.small_pooling import hidden_states, unit
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files
from tests.support.tiers import slow_but_for

_NUM_TOKENS = 12
_EXACT: dict[str, Any] = {
    "model": "tiny",
    "temperature": 0,
    "max_tokens": _NUM_TOKENS,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},
}
_TEXTS = ["hello world", "the capital of france is paris", "the cat sat on the mat and the dog sat on the cat", "a"]
_IDS = [2, 5, 6, 3]
"""The token ids of the first text."""


@pytest.fixture(scope="module", params=slow_but_for(["smolvlm", "qwen2_vl"], "smolvlm"))
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm"), request.param)


@pytest.fixture(scope="module")
def server(vlm: Path) -> Iterator[ServerProcess]:
    arguments = [str(vlm), "--served-model-name", "tiny", "--dtype", "float32"]
    arguments += ["--limit-mm-per-prompt", '{"image": 2}']
    with ServerProcess(arguments) as server:
        yield server


def test_a_data_url_gives_the_tokens_of_transformers(client, vlm):
    messages = image_messages(image_url(1), image_url(2, 100, 80))
    answer = client.chat.completions.create(messages=messages, **_EXACT)
    assert answer.choices[0].token_ids == expected_answer(vlm, messages, _NUM_TOKENS)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_pooler(folder, "bert")
    save_sentence_files(folder)
    return folder


@pytest.fixture(scope="module")
def pooler(bert: Path) -> Iterator[ServerProcess]:
    with ServerProcess([str(bert), "--served-model-name", "tiny", "--runner", "pooling"]) as running:
        yield running


def test_hundreds_of_embeddings_equal_transformers_and_keep_their_order(pooler, bert):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(bert).eval()
    inputs = [_TEXTS[index % 4] for index in range(300)]
    with pooler.openai() as client:
        alone = [client.embeddings.create(model="tiny", input=text).data[0].embedding for text in _TEXTS]
        answer = client.embeddings.create(model="tiny", input=inputs)
    expected = unit(hidden_states(model, _IDS).mean(0))
    assert alone[0] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [item.index for item in answer.data] == list(range(300))
    for index, item in enumerate(answer.data):
        assert item.embedding == pytest.approx(alone[index % 4], abs=1e-5)
    assert pooler.metric("vllm:request_success_total", finished_reason="stop") >= 304
    assert pooler.metric("vllm:num_requests_waiting") == 0
