"""Reads the values of flags of `vllm serve` that name further files of a model: adapters and draft model."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from base.json_depth import read_json
from startup.files.model.request import DraftModel

_NO_DRAFTS: Final = ("ngram", "ngram_gpu", "[ngram]", "suffix", "extract_hidden_states", "custom_class")
"""Values of `model` and `method` in --speculative-config with which vLLM reads no draft model."""


def parse_adapter(text: str) -> tuple[str | None, str | None]:
    """The name and the path in a value of --lora-modules (NAME=PATH or JSON). A missing part is None."""
    if "=" in text and "," not in text:
        name, _, path = text.partition("=")
        return name, path
    content = _settings(text)
    return _text(content.get("name")), _text(content.get("path"))


def _settings(text: str | None) -> dict[str, Any]:
    """The JSON object that a flag gives. Empty if the text is not a JSON object."""
    with suppress(ValueError):
        content = read_json(text or "{}")
        return content if isinstance(content, dict) else {}
    return {}


def read_draft(text: str | None) -> DraftModel | None:
    """The draft model that --speculative-config names."""
    settings = _settings(text)
    source = _text(settings.get("model"))
    if source is None or source in _NO_DRAFTS or settings.get("method") in _NO_DRAFTS:
        return None
    load = settings.get("draft_load_config")
    load_format = _text(load.get("load_format")) if isinstance(load, dict) else None
    return DraftModel(source, _text(settings.get("revision")), load_format.lower() if load_format else None)


def read_adapters(texts: Iterable[str], of_modalities: str | None) -> Iterator[str]:
    """The folders or hub names of the adapters that --lora-modules and --default-mm-loras name."""
    yield from filter(None, (path for _, path in map(parse_adapter, texts)))
    yield from filter(None, map(_text, _settings(of_modalities).values()))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
