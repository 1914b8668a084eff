"""Finds out from the flags of `vllm serve` which files vLLM will read."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from base.json_depth import read_json
from startup.files.model.request import LLAMA_ORIGINALS, Adapter, DraftModel, ModelRequest

_NO_DRAFTS: Final = ("ngram", "ngram_gpu", "[ngram]", "suffix", "extract_hidden_states", "custom_class")
"""Values of `model` and `method` in --speculative-config with which vLLM reads no draft model."""


class GivenFlags(Protocol):
    """The flags of a command line and its file (`command_line.CommandLine`)."""

    @property
    def model(self) -> str | None: ...

    def has(self, *names: str) -> bool: ...

    def value(self, name: str) -> str | None: ...

    def values(self, name: str) -> tuple[str, ...]: ...


def read_model_request(line: GivenFlags) -> ModelRequest:
    """Returns the settings that decide which files vLLM reads."""
    value = line.value
    return ModelRequest(
        engine="vllm",
        model=line.model,
        revision=value("--revision"),
        tokenizer=value("--tokenizer"),
        tokenizer_revision=value("--tokenizer-revision"),
        has_tokenizer=not line.has("--skip-tokenizer-init"),
        hf_config_path=value("--hf-config-path"),
        generation_config=value("--generation-config") or "auto",
        download_dir=value("--download-dir"),
        hf_token=value("--hf-token"),
        load_format=(value("--load-format") or "auto").lower(),
        ignore_patterns=line.values("--ignore-patterns") or (LLAMA_ORIGINALS,),
        adapters=tuple(_adapters(line.values("--lora-modules"), _settings(value("--default-mm-loras")))),
        draft=_draft(_settings(value("--speculative-config"))),
    )


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


def _draft(settings: Mapping[str, Any]) -> DraftModel | None:
    source = _text(settings.get("model"))
    if source is None or source in _NO_DRAFTS or settings.get("method") in _NO_DRAFTS:
        return None
    load = settings.get("draft_load_config")
    load_format = _text(load.get("load_format")) if isinstance(load, dict) else None
    return DraftModel(source, _text(settings.get("revision")), load_format.lower() if load_format else None)


def _adapters(texts: Iterable[str], of_modalities: Mapping[str, Any]) -> Iterator[Adapter]:
    """The adapters that --lora-modules and --default-mm-loras name."""
    for name, source in map(parse_adapter, texts):
        if source is not None:
            yield Adapter(name or source, source)
    for modality, path in of_modalities.items():
        if (source := _text(path)) is not None:
            yield Adapter(modality, source)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
