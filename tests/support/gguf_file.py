"""Writes GGUF files that have a header and no tensors."""

import struct
from pathlib import Path

_INTEGER, _STRING, _LIST = 4, 8, 9


def write_gguf(file: Path, **facts: str | int | list[str]) -> Path:
    """Writes a file with these facts. `__` in a name stands for a dot: `general__architecture="qwen3"`."""
    content = b"".join(_text(key.replace("__", ".")) + _value(value) for key, value in facts.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(facts)) + content)
    return file


def write_model(file: Path, size: int = 1024) -> Path:
    """Writes the header of a model with embeddings of this size."""
    return write_gguf(file, general__architecture="qwen3", general__type="model", qwen3__embedding_length=size)


def write_projector(file: Path, size: int = 1024) -> Path:
    """Writes the header of an image encoder for a model with embeddings of this size."""
    return write_gguf(file, general__architecture="clip", clip__vision__projection_dim=size)


def _value(value: str | int | list[str]) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", _INTEGER, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return struct.pack("<IIQ", _LIST, _STRING, len(value)) + b"".join(map(_text, value))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
