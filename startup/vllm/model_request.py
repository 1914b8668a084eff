"""Reads from vLLM's flags which model files a start needs; wrong values are left to vLLM."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from startup.model.request import LLAMA_ORIGINALS, Adapter, DraftModel, ModelRequest

LISTS: Final[tuple[str, ...]] = ("--lora-modules", "--ignore-patterns")
"""Flags that take several values."""

_SPECULATIVE: Final = ("--speculative-config", "-sc")
_NO_DRAFTS: Final = ("ngram", "ngram_gpu", "[ngram]", "suffix", "extract_hidden_states", "mtp", "custom_class")
"""Values of `model` and `method` of --speculative-config with which no draft model is read."""


def read_model_request(
    model: str | None, values: Mapping[str, str], lists: Mapping[str, Sequence[str]]
) -> ModelRequest:
    """The request of a start of vLLM.

    Args:
        model: MODEL.
        values: flags and their last values, with dashes; those of the file of `--config` too.
        lists: the values of the flags in LISTS.
    """

    def value(*names: str) -> str | None:
        return next((values[name] for name in names if values.get(name)), None)

    return ModelRequest(
        engine="vllm",
        model=model,
        revision=value("--revision"),
        tokenizer=value("--tokenizer"),
        tokenizer_revision=value("--tokenizer-revision"),
        has_tokenizer=values.get("--skip-tokenizer-init", "false").lower() == "false",
        hf_config_path=value("--hf-config-path"),
        generation_config=value("--generation-config") or "auto",
        download_dir=value("--download-dir"),
        hf_token=value("--hf-token"),
        load_format=(value("--load-format") or "auto").lower(),
        ignore_patterns=tuple(lists.get("--ignore-patterns", (LLAMA_ORIGINALS,))),
        adapters=tuple(_adapters(lists.get("--lora-modules", ()), values)),
        draft=_draft(_settings(values, *_SPECULATIVE)),
    )


def _settings(values: Mapping[str, str], *flags: str) -> dict[str, Any]:
    """The content of a flag that takes JSON, with the values of `--flag.key`."""
    found: dict[str, Any] = {}
    for flag in flags:
        with suppress(ValueError):
            content = json.loads(values.get(flag) or "{}")
            found |= content if isinstance(content, dict) else {}
        prefix = f"{flag}."
        found |= {name.removeprefix(prefix): text for name, text in values.items() if name.startswith(prefix)}
    return found


def _draft(settings: Mapping[str, Any]) -> DraftModel | None:
    source = _text(settings.get("model"))
    if source is None or source in _NO_DRAFTS or settings.get("method") in _NO_DRAFTS:
        return None
    load = settings.get("draft_load_config")
    load_format = _text(load.get("load_format")) if isinstance(load, dict) else None
    return DraftModel(source, _text(settings.get("revision")), load_format.lower() if load_format else None)


def _adapters(texts: Iterable[str], values: Mapping[str, str]) -> Iterator[Adapter]:
    """The adapters of --lora-modules, as NAME=PATH or JSON, and those of --default-mm-loras."""
    for text in texts:
        if "=" in text and "," not in text:
            name, _, path = text.partition("=")
            yield Adapter(name, path)
            continue
        with suppress(ValueError):
            content = json.loads(text)
            if isinstance(content, dict) and (source := _text(content.get("path"))) is not None:
                yield Adapter(str(content.get("name", source)), source)
    for modality, path in _settings(values, "--default-mm-loras").items():
        if (source := _text(path)) is not None:
            yield Adapter(modality, source)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
