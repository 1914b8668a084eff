"""The settings that decide which files of its model a start reads, for both engines.

A request is built once from the command line. `ModelRequest.of_start` builds it for the embedded engine, and
`startup.vllm_arguments` builds it for vLLM, whose flags for adapters and draft models are read here.
`startup.files.model.file_plan` finds the files of a request.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from base.json_depth import read_json
from envs.foreign import expand_home
from envs.registry import env

if TYPE_CHECKING:
    from startup.settings.config import StartupConfig

EngineName = Literal["embedded", "vllm"]

LLAMA_ORIGINALS = "original/**/*"
"""vLLM's default for --ignore-patterns."""
_NO_DRAFTS: Final = ("ngram", "ngram_gpu", "[ngram]", "suffix", "extract_hidden_states", "custom_class")
"""Values of `model` and `method` in --speculative-config with which vLLM reads no draft model."""


@dataclass(frozen=True)
class DraftModel:
    """The draft model of --speculative-config."""

    source: str
    """A folder, or a name on the hub."""
    revision: str | None = None
    load_format: str | None = None
    """The format in `draft_load_config`. None stands for the model's format."""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """All settings that decide which files a start reads."""

    model: str | None = None
    """A folder, or a name on the hub. None stands for the default model."""
    engine: EngineName = "embedded"
    revision: str | None = None
    """The model's branch, tag or commit on the hub. None stands for the main branch."""
    tokenizer: str | None = None
    """A folder or a name on the hub. None stands for the model's own tokenizer."""
    tokenizer_revision: str | None = None
    has_tokenizer: bool = True
    """Whether the start reads a tokenizer. False with --skip-tokenizer-init."""
    hf_config_path: str | None = None
    """The folder of config.json, or its name on the hub, if it is not with the model."""
    generation_config: str = "auto"
    """The folder of generation_config.json, or its name on the hub.

    `auto` stands for the model's folder or name. With `vllm`, no such file is read.
    """
    download_dir: str | None = None
    """The cache folder for models from the hub. None stands for HF_HUB_CACHE (`cache_dir`)."""
    hf_token: str | None = field(default=None, repr=False)
    """The hub's token. None: the hub's client uses HF_TOKEN or the token of `hf auth login`."""
    load_format: str = "auto"
    """The value of --load-format, in lower case."""
    ignore_patterns: tuple[str, ...] = (LLAMA_ORIGINALS,)
    """Patterns of files in a repository that are not downloaded."""
    adapters: tuple[str, ...] = ()
    """The folders of LoRA adapters, or their names on the hub."""
    draft: DraftModel | None = None

    @classmethod
    def of_start(cls, config: "StartupConfig") -> "ModelRequest":
        """Returns the request for a start of the embedded engine."""
        model = config.model
        return cls(
            model=model.model,
            revision=model.revision,
            tokenizer=model.tokenizer,
            download_dir=model.download_dir,
            hf_token=None if model.hf_token == env.HF_TOKEN.get() else model.hf_token,  # the client reads it, too
        )

    @property
    def cache_dir(self) -> Path:
        return Path(expand_home(self.download_dir)) if self.download_dir else env.HF_HUB_CACHE.get()

    @property
    def has_own_tokenizer_place(self) -> bool:
        """Whether the tokenizer has another name or another revision than the model."""
        if not self.has_tokenizer:
            return False
        is_other = self.tokenizer is not None and self.tokenizer != self.model
        return is_other or self.revision_of_tokenizer != self.revision

    @property
    def revision_of_tokenizer(self) -> str | None:
        """The tokenizer's revision. None stands for the main branch.

        Without --tokenizer-revision, vLLM uses the model's revision for any tokenizer. The embedded engine
        uses it only for the model's own tokenizer.
        """
        if self.tokenizer_revision is not None or self.engine == "vllm":
            return self.tokenizer_revision or self.revision
        return self.revision if self.tokenizer in (None, self.model) else None


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
