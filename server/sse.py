"""Server-sent events: the encoding of a stream's chunks."""

from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()

MEDIA_TYPE = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


def encode_named_event(payload: msgspec.Struct) -> bytes:
    """One event with its struct's tag as its name."""
    name = str(payload.__struct_config__.tag)
    return b"event: " + name.encode() + b"\n" + encode_event(payload)


def encode_event(payload: Any) -> bytes:
    """One event with a body as JSON."""
    return b"data: " + _encoder.encode(payload) + b"\n\n"
