"""Builds and encodes the requests of `bench liveness` before the clock starts."""

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from itertools import cycle, islice
from random import Random
from typing import Any, Final, NamedTuple

import msgspec
from PIL import Image

from vllm_cli.bench.liveness.config import Kind, PayloadShape
from vllm_cli.bench.request import EncodedRequest
from vllm_cli.bench.request_format import Destination, build_prompt

_MIN_CHARS_PER_TOKEN: Final = 4
_NUM_PATCHES: Final = 8
"""Coloured areas along each side of an image."""
_GRAIN_PX: Final = 4
_GRAIN_SHARE: Final = 0.2
_EMBEDDINGS_SCALE: Final = 0.02
"""Approximate standard deviation of a model's own embeddings."""


def build_requests(
    kind: Kind, shape: PayloadShape, destination: Destination, *, num_requests: int, seed: str
) -> list[EncodedRequest]:
    """With the same seed, all servers get the same requests, but for the model's name."""
    kind_format = _KIND_FORMATS[kind]
    num_different = min(kind_format.num_different or num_requests, num_requests)
    encoded = [_encode(kind_format, shape, destination, f"{seed}/{kind}/{number}") for number in range(num_different)]
    return list(islice(cycle(encoded), num_requests))


def _encode(kind_format: "_KindFormat", shape: PayloadShape, destination: Destination, seed: str) -> EncodedRequest:
    body = {"model": destination.model} | kind_format.write(shape, seed)
    if kind_format.is_generating:
        body |= {"max_tokens": shape.max_tokens, "temperature": 0, "stream": True}
    url = destination.base_url + kind_format.path
    return EncodedRequest(url, destination.headers, msgspec.json.encode(body), kind_format.is_generating)


def _write_conversation(shape: PayloadShape, seed: str) -> dict[str, Any]:
    """The last message is the user's; an even number of messages begins with the system's."""
    text = _write_text(shape.turns * shape.turn_chars, seed)
    pieces = (text[start : start + shape.turn_chars] for start in range(0, len(text), shape.turn_chars))
    roles = islice(cycle(("user", "assistant")), shape.turns - 1 + shape.turns % 2)
    opening = () if shape.turns % 2 else ("system",)
    return {"messages": [_message(role, piece) for role, piece in zip((*opening, *roles), pieces, strict=True)]}


def _write_image_question(shape: PayloadShape, seed: str) -> dict[str, Any]:
    address = "data:image/jpeg;base64," + b64encode(_create_jpeg(shape.image_px, seed=seed)).decode()
    parts = [
        {"type": "text", "text": _write_text(shape.turn_chars, seed)},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    return {"messages": [_message("user", parts)]}


def _create_jpeg(width_px: int, *, seed: str) -> bytes:
    """A square image as expensive to decode as a photograph: noise keeps it large."""
    source = Random(seed)

    def create_noise(num_cells: int) -> Image.Image:
        cells = Image.frombytes("RGB", (num_cells, num_cells), source.randbytes(3 * num_cells**2))
        return cells.resize((width_px, width_px), Image.Resampling.BICUBIC)

    image = Image.blend(create_noise(_NUM_PATCHES), create_noise(max(1, width_px // _GRAIN_PX)), _GRAIN_SHARE)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _write_embeddings(shape: PayloadShape, seed: str) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - takes a second, and only this kind needs it

    generator = torch.Generator().manual_seed(Random(seed).getrandbits(32))
    tensor = torch.randn(shape.embed_rows, shape.embed_hidden, generator=generator) * _EMBEDDINGS_SCALE
    file = BytesIO()
    torch.save(tensor.to(torch.bfloat16), file)
    return {"prompt_embeds": b64encode(file.getvalue()).decode()}


def _write_batch(shape: PayloadShape, seed: str) -> dict[str, Any]:
    return {"input": [_write_text(shape.turn_chars, f"{seed}/{index}") for index in range(shape.batch)]}


def _write_text(num_chars: int, seed: str) -> str:
    return build_prompt(num_chars // _MIN_CHARS_PER_TOKEN + 16, seed=seed)[:num_chars]


def _message(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


class _KindFormat(NamedTuple):
    """The path and the body of one kind of request."""

    path: str
    write: Callable[[PayloadShape, str], dict[str, Any]]
    is_generating: bool = False
    num_different: int = 0
    """Number of different requests; 0: all requests differ."""


_KIND_FORMATS: Final[dict[Kind, _KindFormat]] = {
    "tokenize-chat": _KindFormat("/tokenize", _write_conversation),
    "chat": _KindFormat("/v1/chat/completions", _write_conversation, is_generating=True),
    "images": _KindFormat("/v1/chat/completions", _write_image_question, is_generating=True),
    "prompt_embeds": _KindFormat("/v1/completions", _write_embeddings, is_generating=True, num_different=4),
    "pooling": _KindFormat("/v1/embeddings", _write_batch),
}
"""Embeddings are about ten megabytes each, too large for a different tensor per request."""
