"""Conversations with images, and the output of transformers' own `generate` for them."""

import asyncio
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from server.engine.prompt_features import to_tensor
from server.operation.admission import Admission, Lease
from server.terms.config import ModelFiles, RendererConfig
from server.terms.limits import LimitsConfig
from server.terms.types import TensorData
from server.text.renderers.prompts import ChatOptions, RenderedPrompt
from server.text.renderers.renderer import Renderer
from tests.server.engine.features.tiny_vlm import as_url, image, load_reference
from tests.server.inline_executor import InlineExecutor


def image_url(seed: int, width: int = 60, height: int = 60, kind: str = "PNG") -> str:
    """A `data:` URL with an image, different for each seed."""
    return as_url(image(width, height, seed=seed), kind)


def image_messages(*urls: str) -> list[Any]:
    """A conversation of one message, with a text and the images."""
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "Look: "}, *parts]}]


async def render_with_images(renderer: Renderer, messages: list[Any], options: ChatOptions) -> RenderedPrompt:
    """Renders the prompt of a request."""
    images = await renderer.load_images(messages, Lease(Admission(LimitsConfig())))
    return await renderer.pools.run(renderer.render_chat, messages, options, images)


def expected_answer(folder: Path, messages: list[Any], num_tokens: int, *, device: str = "cpu") -> list[int]:
    """The tokens that the saved model generates for the conversation."""
    renderer = Renderer(ModelFiles(folder, folder), RendererConfig(), executor=InlineExecutor())
    prompt = asyncio.run(render_with_images(renderer, messages, ChatOptions()))
    assert prompt.inputs is not None
    return generate_answer(load_reference(folder).to(device), prompt, num_tokens)


def generate_answer(model: PreTrainedModel, prompt: RenderedPrompt, num_tokens: int) -> list[int]:
    """Generates `num_tokens` tokens greedily, and ignores the end of sequence."""
    mm = prompt.inputs.mm or {} if prompt.inputs else {}
    ids = torch.tensor([prompt.token_ids], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        **{name: _as_input(data).to(model.device) for name, data in mm.items()},
    )
    return output[0, ids.shape[1] :].tolist()


def writable(data: TensorData) -> TensorData:
    """A writable copy, because the renderer's bytes are read-only and tensors need writable memory."""
    return TensorData(data.dtype, data.shape, memoryview(bytearray(data.data)))


def _as_input(data: TensorData) -> torch.Tensor:
    tensor = to_tensor(writable(data))
    return tensor.long() if tensor.dtype == torch.bool else tensor
