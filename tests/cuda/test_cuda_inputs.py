"""Images and pooling on a GPU."""

from typing import Any

import pytest
from transformers import AutoModel

from tests.cuda.gpu import DEVICE
from tests.e2e.server_process import ServerProcess
from tests.server.engine.features.tiny_vlm import save_vlm
from tests.server.engine.features.vlm_reference import expected_answer, image_messages, image_url
from tests.server.engine.pooling.small_pooling import hidden_states, unit
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

pytestmark = [pytest.mark.cuda, pytest.mark.thorough]

_NUM_TOKENS = 12


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
def test_answers_about_images_equal_those_of_transformers(family, tmp_path):
    folder = save_vlm(tmp_path, family)
    messages = image_messages(image_url(1))
    arguments = [str(folder), "--served-model-name", "seer", "--dtype", "float32", "--max-num-seqs", "4"]
    with ServerProcess(arguments) as server, server.openai() as client:
        answer: Any = client.chat.completions.create(
            model="seer",
            messages=messages,
            temperature=0,
            max_tokens=_NUM_TOKENS,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
    assert answer.choices[0].token_ids == expected_answer(folder, messages, _NUM_TOKENS, device=DEVICE)


def test_embeddings_equal_those_of_the_model(tmp_path):
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path)
    words = [str(tmp_path), "--served-model-name", "tiny", "--runner", "pooling"]
    with ServerProcess(words) as server, server.openai() as client:
        texts = ["hello world", "the capital of france is paris"] * 8
        vectors = [item.embedding for item in client.embeddings.create(model="tiny", input=texts).data]
    model = AutoModel.from_pretrained(tmp_path).eval()
    expected = unit(hidden_states(model, [2, 5, 6, 3]).mean(0))
    assert vectors[0] == pytest.approx(expected.tolist(), abs=1e-4)
    assert vectors[14] == pytest.approx(vectors[0], abs=1e-5)
