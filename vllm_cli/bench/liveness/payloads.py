"""The requests of `bench liveness`, encoded up front; nothing is made while the clock runs."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle, islice
from random import Random
from typing import Any, Final, NamedTuple

import msgspec

from vllm_cli.bench.dialect import request_headers
from vllm_cli.bench.liveness.config import PayloadShape, PlainKind
from vllm_cli.bench.liveness.photo import draw_photo
from vllm_cli.bench.prompts import build_prompt
from vllm_cli.bench.request import EncodedRequest

_FEWEST_CHARS_PER_TOKEN: Final = 4
_EMBEDDINGS_SCALE: Final = 0.02
"""About that of a model's own embeddings."""


@dataclass(frozen=True, kw_only=True)
class Addressee:
    """Who the requests go to."""

    base_url: str
    model: str
    api_key: str | None


def build_requests(
    kinds: Sequence[PlainKind], shape: PayloadShape, addressee: Addressee, *, num_requests: int, seed: str
) -> list[EncodedRequest]:
    """Requests of these kinds in turn; with the same seed all addressees get the same, but for the model's name."""
    encoded: dict[tuple[PlainKind, int], EncodedRequest] = {}
    requests = []
    for index, kind in enumerate(islice(cycle(kinds), num_requests)):
        form = _FORMS[kind]
        number = index % form.num_different if form.num_different else index
        if (kind, number) not in encoded:
            encoded[kind, number] = _encode(form, shape, addressee, f"{seed}/{kind}/{number}")
        requests.append(encoded[kind, number])
    return requests


def _encode(form: "_Form", shape: PayloadShape, addressee: Addressee, seed: str) -> EncodedRequest:
    body = {"model": addressee.model} | form.write(shape, seed)
    if form.is_generating:
        body |= {"max_tokens": shape.max_tokens, "temperature": 0, "stream": True}
    url, headers = addressee.base_url + form.path, request_headers(addressee.api_key)
    return EncodedRequest(url, headers, msgspec.json.encode(body), form.is_generating)


def _write_conversation(shape: PayloadShape, seed: str) -> dict[str, Any]:
    """A user's turn is the last; an even number of turns begins with the system's."""
    text = _write_text(shape.turns * shape.turn_chars, seed)
    pieces = (text[start : start + shape.turn_chars] for start in range(0, len(text), shape.turn_chars))
    roles = islice(cycle(("user", "assistant")), shape.turns - 1 + shape.turns % 2)
    opening = () if shape.turns % 2 else ("system",)
    return {"messages": [_say(role, piece) for role, piece in zip((*opening, *roles), pieces, strict=True)]}


def _write_image_question(shape: PayloadShape, seed: str) -> dict[str, Any]:
    address = "data:image/jpeg;base64," + b64encode(draw_photo(shape.image_px, seed=seed)).decode()
    parts = [
        {"type": "text", "text": _write_text(shape.turn_chars, seed)},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    return {"messages": [_say("user", parts)]}


def _write_embeddings(shape: PayloadShape, seed: str) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - takes a second that the other kinds can do without

    generator = torch.Generator().manual_seed(Random(seed).getrandbits(32))
    tensor = torch.randn(shape.embed_rows, shape.embed_hidden, generator=generator) * _EMBEDDINGS_SCALE
    file = BytesIO()
    torch.save(tensor.to(getattr(torch, shape.embed_dtype)), file)
    return {"prompt_embeds": b64encode(file.getvalue()).decode()}


def _write_batch(shape: PayloadShape, seed: str) -> dict[str, Any]:
    return {"input": [_write_text(shape.turn_chars, f"{seed}/{index}") for index in range(shape.batch)]}


def _write_text(num_chars: int, seed: str) -> str:
    return build_prompt(num_chars // _FEWEST_CHARS_PER_TOKEN + 16, seed=seed)[:num_chars]


def _say(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


class _Form(NamedTuple):
    """How requests of one kind are written."""

    path: str
    write: Callable[[PayloadShape, str], dict[str, Any]]
    is_generating: bool = False
    num_different: int = 0
    """How many different ones there are; 0: no two are alike."""


_FORMS: Final[dict[PlainKind, _Form]] = {
    "tokenize-chat": _Form("/tokenize", _write_conversation),
    "chat": _Form("/v1/chat/completions", _write_conversation, is_generating=True),
    "images": _Form("/v1/chat/completions", _write_image_question, is_generating=True),
    "prompt_embeds": _Form("/v1/completions", _write_embeddings, is_generating=True, num_different=4),
    "pooling": _Form("/v1/embeddings", _write_batch),
}
"""Embeddings are some ten megabytes each, too many for each request to have its own; they pass through no cache."""
