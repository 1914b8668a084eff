"""Writes vision models with random weights in the real formats, a few megabytes each."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from server.engine.prompt_features import to_tensor
from server.operation.admission import Admission, Lease
from server.terms.config import ModelFiles, RendererConfig
from server.terms.limits import LimitsConfig
from server.terms.types import TensorData
from server.text.renderers.prompts import ChatOptions, RenderedPrompt
from server.text.renderers.renderer import Renderer
from tests.server.inline_executor import InlineExecutor

MAX_TOKENS = 4096
_SIZE = 56
"""The side of an image in pixels. `_PATCH` is the side of a patch."""
_PATCH = 14
_HIDDEN = 64
_VISION = {"hidden_size": _HIDDEN, "intermediate_size": 2 * _HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_IDEFICS_TOKENS = [
    *("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
_QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]

_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


@dataclass(frozen=True)
class Family:
    """How to build the models of one family."""

    tokens: list[str]
    """The family's special tokens."""
    image_text: str
    """The chat template's text for an image."""
    build: Callable[["Parts"], "Files"]
    bos_token: str | None = None
    """The token that the tokenizer puts before every text."""
    named_tokens: dict[str, str] = field(default_factory=dict)
    """Attribute of the tokenizer -> token that the processor reads from it."""


Files = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""The contents of config.json, preprocessor_config.json and processor_config.json."""


class Parts(NamedTuple):
    """The parts of a configuration that depend on the model's tokenizer."""

    token_id: Callable[[str], int]
    text: dict[str, Any]


def save_vlm(path: Path, family: str) -> Path:
    """Saves a model of the family with tokenizer and processor, as in a checkpoint from the hub."""
    kind = FAMILIES[family]
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(_CHATML.replace("IMAGE", kind.image_text))
    config, preprocessor, processor = kind.build(Parts(tokenizer.convert_tokens_to_ids, _text_config(tokenizer)))
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    if processor:
        (path / "processor_config.json").write_text(json.dumps(processor, indent=2))
    _build_model(family, config).save_pretrained(path)
    return path


def load_reference(path: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()


def image(width: int = 56, height: int = 56, *, seed: int = 0) -> Image.Image:
    """An image of coloured noise, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def as_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def as_url(image: Image.Image, kind: str = "PNG") -> str:
    """The image's file as a `data:` URL."""
    return f"data:image/{kind.lower()};base64,{b64encode(as_bytes(image, kind)).decode()}"


def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *([family.bos_token] if family.bos_token else [])]
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")] if "the" in vocab else []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in [*special, *family.tokens]])
    if family.bos_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos_token} $A", special_tokens=[(family.bos_token, vocab[family.bos_token])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token=family.bos_token,
        model_max_length=MAX_TOKENS,
        extra_special_tokens=family.named_tokens,
    )


def _text_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def _llava(parts: Parts) -> Files:
    vision = {"model_type": "clip_vision_model", "image_size": _SIZE, "patch_size": _PATCH, "projection_dim": 32}
    config = {
        "text_config": {"model_type": "llama", **parts.text},
        "vision_config": {**_VISION, **vision},
        "image_token_index": parts.token_id("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": (_SIZE // _PATCH) ** 2,
    }
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": _SIZE},
        "crop_size": {"height": _SIZE, "width": _SIZE},
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": _PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    return config, preprocessor, processor


def _llava_next(parts: Parts) -> Files:
    config, preprocessor, processor = _llava(parts)
    names = {"processor_class": "LlavaNextProcessor"}
    pinpoints = {"image_grid_pinpoints": [[_SIZE, 2 * _SIZE], [2 * _SIZE, _SIZE], [2 * _SIZE, 2 * _SIZE]]}
    preprocessor |= {"image_processor_type": "LlavaNextImageProcessor", **names, **pinpoints}
    return config | pinpoints, preprocessor, processor | names


def _idefics3(parts: Parts, *, name: str = "Idefics3") -> Files:
    vision = {"model_type": f"{name.lower()}_vision", "image_size": _SIZE, "patch_size": _PATCH}
    config = {
        "text_config": {"model_type": "llama", **parts.text},
        "vision_config": {**_VISION, **vision},
        "image_token_id": parts.token_id("<image>"),
        "pad_token_id": parts.text["pad_token_id"],
        "scale_factor": 2,
    }
    preprocessor = {
        "image_processor_type": f"{name}ImageProcessor",
        "processor_class": f"{name}Processor",
        "size": {"longest_edge": 4 * _SIZE},
        "max_image_size": {"longest_edge": _SIZE},
    }
    processor = {"processor_class": f"{name}Processor", "image_seq_len": (_SIZE // _PATCH // 2) ** 2}
    return config, preprocessor, processor


def _internvl(parts: Parts) -> Files:
    length = {"image_seq_length": (_SIZE // _PATCH // 2) ** 2}
    config = {
        "text_config": {"model_type": "qwen2", **parts.text},
        "vision_config": {**_VISION, "image_size": [_SIZE, _SIZE], "patch_size": [_PATCH, _PATCH]},
        "image_token_id": parts.token_id("<IMG_CONTEXT>"),
        "downsample_ratio": 0.5,
        **length,
    }
    preprocessor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": _SIZE, "width": _SIZE},
    }
    return config, preprocessor, {"processor_class": "InternVLProcessor", **length}


_QWEN_VISION = {"depth": 2, "hidden_size": _HIDDEN, "num_heads": 4}
_QWEN_PATCHES = {"patch_size": _PATCH, "temporal_patch_size": 2}


def _qwen2_vl(parts: Parts) -> Files:
    rope = {"rope_type": "default", "mrope_section": [2, 5, 1], "rope_theta": 10000.0}
    vision = {"embed_dim": _HIDDEN, "mlp_ratio": 2, "spatial_merge_size": 2}
    config = {
        "text_config": {**parts.text, "rope_parameters": rope},
        "vision_config": {**_QWEN_VISION, **_QWEN_PATCHES, **vision},
        "image_token_id": parts.token_id("<|image_pad|>"),
        "video_token_id": parts.token_id("<|video_pad|>"),
        "vision_start_token_id": parts.token_id("<|vision_start|>"),
        "vision_end_token_id": parts.token_id("<|vision_end|>"),
    }
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 4 * (2 * _PATCH) ** 2,
        "max_pixels": 4 * _SIZE**2,
        **_QWEN_PATCHES,
        "merge_size": 2,
    }
    return config, preprocessor, {}


def _qwen2_5_vl(parts: Parts) -> Files:
    config, preprocessor, _ = _qwen2_vl(parts)
    vision = {"out_hidden_size": _HIDDEN, "intermediate_size": 2 * _HIDDEN, "spatial_merge_size": 2}
    windows = {"window_size": 56, "fullatt_block_indexes": [1]}
    config |= {"vision_config": {**_QWEN_VISION, **_QWEN_PATCHES, **vision, **windows}}
    return config, preprocessor | {"processor_class": "Qwen2_5_VLProcessor"}, {}


FAMILIES: dict[str, Family] = {
    "internvl": Family(list(_INTERNVL_TOKENS.values()), "<IMG_CONTEXT>\n", _internvl, named_tokens=_INTERNVL_TOKENS),
    "llava": Family(["<image>"], "<image>\n", _llava, bos_token="<s>"),
    "llava_next": Family(["<image>"], "<image>\n", _llava_next, bos_token="<s>"),
    "idefics3": Family(_IDEFICS_TOKENS, "<image>", _idefics3),
    "smolvlm": Family(_IDEFICS_TOKENS, "<image>", partial(_idefics3, name="SmolVLM")),
    "qwen2_vl": Family(_QWEN_TOKENS, "<|vision_start|><|image_pad|><|vision_end|>", _qwen2_vl),
    "qwen2_5_vl": Family(_QWEN_TOKENS, "<|vision_start|><|image_pad|><|vision_end|>", _qwen2_5_vl),
}


def _build_model(family: str, config: dict[str, Any]) -> PreTrainedModel:
    """A model whose weights all affect the output, so that another image gives another output."""
    torch.manual_seed(0)
    config = {"tie_word_embeddings": False, **config}
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[family](**config), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" in name and "patch" not in name:
                parameter.normal_(0, 0.5)
            else:
                is_score = "q_proj" in name or "k_proj" in name
                parameter.normal_(0, (2.0 if is_score else 1.0) * parameter[0].numel() ** -0.5)
    model.generation_config.eos_token_id = config["text_config"]["eos_token_id"]
    model.generation_config.pad_token_id = config["text_config"]["pad_token_id"]
    return model.eval()


def image_url(seed: int, width: int = 60, height: int = 60, kind: str = "PNG") -> str:
    """A `data:` URL with an image, different for each seed."""
    return as_url(image(width, height, seed=seed), kind)


def image_messages(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "Look: "}, *parts]}]


async def render_with_images(renderer: Renderer, messages: list[Any], options: ChatOptions) -> RenderedPrompt:
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
