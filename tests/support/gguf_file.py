"""Writes GGUF files: facts, and the tensors that a test gives as bytes."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

_INTEGER, _FLOAT, _STRING, _LIST = 4, 6, 8, 9
_ALIGNMENT = 32
Value: TypeAlias = str | int | float | Sequence[str | int]


class GgufTensor(NamedTuple):
    """A tensor. Its shape is that of transformers, and `kind` the number of its type."""

    shape: tuple[int, ...]
    kind: int
    data: bytes


def write_gguf(file: Path, tensors: Mapping[str, GgufTensor] | None = None, **facts: Value) -> Path:
    """Writes a file with these facts. `__` in a name stands for a dot: `general__architecture="qwen3"`."""
    content = b""
    for key, value in facts.items():
        content += _text(key.replace("__", ".")) + _value(value)
    data = b""
    for name, (shape, kind, bytes_of_tensor) in (tensors or {}).items():
        layout = f"<I{len(shape)}QIQ"
        content += _text(name) + struct.pack(layout, len(shape), *reversed(shape), kind, len(data))
        data += bytes_of_tensor + bytes(-len(bytes_of_tensor) % _ALIGNMENT)
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors or {}), len(facts)) + content
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content + bytes(-len(content) % _ALIGNMENT) * bool(data) + data)
    return file


def _value(value: Value) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", _INTEGER, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind = _value(value[0])[:4]
    items = b"".join(_value(each)[4:] for each in value)
    return struct.pack("<I", _LIST) + kind + struct.pack("<Q", len(value)) + items


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
