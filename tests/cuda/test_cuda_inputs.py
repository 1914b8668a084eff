"""Pictures and pooling on a GPU."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from server_process import ServerProcess
from tiny_vlm import as_bytes, load_reference, picture, save_vlm
from transformers import AutoModel

from server.config import ModelFiles, RendererConfig
from server.engine.prompt_features import to_tensor
from server.renderers.pool import InlineExecutor
from server.renderers.prompts import ChatOptions
from server.renderers.vision import VisionRenderer
from server.types import TensorData
from tests.cuda.gpu import DEVICE
from tests.server.engine.small_pooling import hidden_states, unit
from tests.server.engine.tiny_poolers import save_pooler, save_sentence_files

pytestmark = pytest.mark.cuda

_NUM_TOKENS = 12


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
def test_pictures_are_seen_as_by_transformers(family: str, tmp_path: Path) -> None:
    folder = save_vlm(tmp_path, family)
    url = "data:image/png;base64," + base64.b64encode(as_bytes(picture(60, 60, seed=1))).decode()
    parts = [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}]
    messages: list[Any] = [{"role": "user", "content": parts}]
    arguments = [str(folder), "--served-model-name", "seer", "--dtype", "float32", "--max-num-seqs", "4"]
    with (
        ServerProcess(arguments) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer: Any = client.chat.completions.create(
            model="seer",
            messages=messages,
            temperature=0,
            max_tokens=_NUM_TOKENS,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
    assert answer.choices[0].token_ids == _generate(folder, messages)


def test_embeddings_are_those_of_the_model(tmp_path: Path) -> None:
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path)
    with (
        ServerProcess([str(tmp_path), "--served-model-name", "tiny", "--runner", "pooling"]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        texts = ["hello world", "the capital of france is paris"] * 8
        vectors = [item.embedding for item in client.embeddings.create(model="tiny", input=texts).data]
    model = AutoModel.from_pretrained(tmp_path).eval()
    expected = unit(hidden_states(model, [2, 5, 6, 3]).mean(0))
    assert vectors[0] == pytest.approx(expected.tolist(), abs=1e-4)
    assert vectors[14] == pytest.approx(vectors[0], abs=1e-5)


def _generate(folder: Path, messages: list[Any]) -> list[int]:
    """The tokens of transformers' own `generate` on the GPU."""
    renderer = VisionRenderer(ModelFiles(folder, folder), RendererConfig(), executor=InlineExecutor())
    prompt = asyncio.run(renderer.render_chat_async(messages, ChatOptions()))
    assert prompt.inputs is not None
    tensors = {name: _on_gpu(data) for name, data in (prompt.inputs.mm or {}).items()}
    ids = torch.tensor([prompt.token_ids], device=DEVICE)
    output = (
        load_reference(folder)
        .to(DEVICE)
        .generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            **tensors,
        )
    )
    return output[0, ids.shape[1] :].tolist()


def _on_gpu(data: TensorData) -> torch.Tensor:
    writable = TensorData(data.dtype, data.shape, memoryview(bytearray(data.data)))
    tensor = to_tensor(writable)
    return (tensor.long() if tensor.dtype == torch.bool else tensor).to(DEVICE)
