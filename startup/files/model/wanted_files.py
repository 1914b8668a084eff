"""Chooses by name which files of a repository or folder a start reads, by the rules of vLLM and transformers.

The same rules apply to a repository's list before a download, and to the files of a folder.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from startup.files.model.checkpoint_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    choose_names,
    is_numbered,
    with_siblings,
)
from startup.files.model.model_request import LLAMA_ORIGINALS, EngineName, ModelRequest

Role = Literal["model", "draft", "tokenizer", "config", "generation_config", "adapter"]
"""Why a start reads a repository or folder."""

MISTRAL_WEIGHTS: Final = "consolidated*.safetensors"

_SMALL_FILES: Final = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.model.v*",
    "*.tiktoken",
    "*.vocab",
    "*.bpe",
    "*bpe.codes",
    "*.py",
)
"""Patterns for configuration, tokenizer and the model's own code."""
_NOT_READ: Final = re.compile(r"(readme|license|notice|requirements|training_args|trainer_state)\b.*", re.IGNORECASE)
_MODULE: Final = re.compile(r"\d+_[A-Za-z]+/[^/]+")
"""Files of sentence-transformers' modules, such as 1_Pooling/config.json."""
_TEMPLATES: Final = "additional_chat_templates/*.jinja"
_NEEDED: Final = ("config.json", "params.json", ADAPTER_CONFIG)
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json")
_CONFIGS: Final = ("config.json", "params.json", "generation_config.json")


class LoadFormat(NamedTuple):
    """The weights that vLLM reads with one value of --load-format."""

    patterns: tuple[str, ...] = ("*.safetensors", "*.bin", "*.pt")
    """vLLM takes the first pattern that matches any file, and reads all files that match this pattern."""
    index_name: str = ""
    """The name of the index. If this file exists, vLLM reads only the files that the index names."""
    is_cached: bool = True
    """Whether vLLM reads the weights through the page cache. False if vLLM reads no weights."""


_SAFETENSORS: Final = ("*.safetensors",)
_INDEX: Final = "model.safetensors.index.json"
_HF: Final = LoadFormat(index_name=_INDEX)
_FORMATS: Final[Mapping[str, LoadFormat]] = {
    "auto": _HF,
    "ipc_cache": _HF._replace(is_cached=False),
    "modelexpress": _HF,
    "hf": _HF,
    "safetensors": LoadFormat(_SAFETENSORS, _INDEX),
    "fastsafetensors": LoadFormat(_SAFETENSORS, _INDEX, is_cached=False),
    "instanttensor": LoadFormat(_SAFETENSORS, _INDEX, is_cached=False),
    "runai_streamer": LoadFormat(_SAFETENSORS, is_cached=False),
    "runai_streamer_sharded": LoadFormat(_SAFETENSORS, is_cached=False),
    "sharded_state": LoadFormat(_SAFETENSORS),
    "mistral": LoadFormat((MISTRAL_WEIGHTS,), "consolidated.safetensors.index.json"),
    "npcache": LoadFormat(("*.bin", "*.pt")),
    "pt": LoadFormat(("*.pt",)),
    "dummy": LoadFormat((), is_cached=False),
    "tensorizer": LoadFormat((), is_cached=False),
}
_AUTOMATIC: Final = ("auto", "ipc_cache", "modelexpress")
"""With these values of --load-format, vLLM reads the files of `auto`, at least as a fallback."""
_WEIGHT_ENDINGS: Final = (".safetensors", ".bin", ".pt", ".gguf")
_NOT_FOR_INFERENCE: Final = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


def format_of(load_format: str) -> LoadFormat:
    """Returns the weights for this value, or all kinds for an unknown value, such as a plugin's."""
    return _FORMATS.get(load_format, LoadFormat())


@dataclass(frozen=True, kw_only=True)
class WantedFiles:
    """Which files a start reads from one repository or folder."""

    role: Role
    engine: EngineName = "embedded"
    load_format: str = "auto"
    ignore_patterns: tuple[str, ...] = (LLAMA_ORIGINALS,)
    has_tokenizer: bool = False
    """Whether the model's own tokenizer is read."""

    @classmethod
    def of(cls, role: Role, request: ModelRequest) -> "WantedFiles":
        """Returns which files a start with this request reads from a repository in this role."""
        own = request.draft.load_format if role == "draft" and request.draft is not None else None
        load_format, ignored = own or request.load_format, request.ignore_patterns
        has_tokenizer = role == "model" and request.has_tokenizer and not request.has_own_tokenizer_place
        wanted = cls(role=role, engine=request.engine, load_format=load_format, ignore_patterns=ignored)
        return replace(wanted, has_tokenizer=has_tokenizer)

    @property
    def has_weights(self) -> bool:
        """Whether the start reads weights of any format."""
        is_read = self.role in ("model", "draft") and format_of(self.load_format).patterns != ()
        return is_read or self.role == "adapter"

    def is_needed(self, name: str) -> bool:
        """Whether a start that reads this file fails without it."""
        is_of_tokenizer = name in _TOKENIZERS and (self.has_tokenizer or self.role == "tokenizer")
        return is_of_tokenizer or name in _NEEDED or name.endswith((*_WEIGHT_ENDINGS, ".index.json"))

    def choose(self, names: Iterable[str], weight_map: Mapping[str, str] | None = None) -> list[str]:
        """Returns the names of the files that the start reads, in order: small files first, then weights.

        Args:
            names: all files of the repository or folder, with `/` after the names of subfolders.
            weight_map: maps tensors to files, by the index (`index_of`). Without the map, shards are found by
                their numbers.
        """
        names = list(names)
        return [*self.choose_small(names), *self.choose_weights(names, weight_map)]

    def choose_small(self, names: Iterable[str]) -> list[str]:
        """Returns the names of the files of configuration (config.json first), tokenizer and code."""
        small = filter(self._is_small, names)
        return sorted(small, key=lambda name: ("/" in name, name != "config.json", name))

    def choose_weights(self, names: Iterable[str], weight_map: Mapping[str, str] | None = None) -> list[str]:
        """Returns the names of the weight files only. The arguments are those of `choose`."""
        if not self.has_weights:
            return []
        names = [name for name in names if not any(fnmatchcase(name, ignored) for ignored in self.ignore_patterns)]
        if self.role == "adapter":
            return [name for name in ADAPTER_WEIGHTS if name in names][:1]
        found = self.required_weights(names, weight_map).intersection(names)
        return [*sorted(found, key=natural_order), *self._module_weights(names)]

    def choose_no_weights(self, names: Iterable[str], weight_map: Mapping[str, str] | None = None) -> list[str]:
        """Returns the names of weight files that the start leaves out, as in other formats."""
        names = list(names)
        known = {*self.choose_weights(names, weight_map), *ADAPTER_WEIGHTS, *_NOT_FOR_INFERENCE}
        others = [name for name in names if "/" not in name and name.endswith(_WEIGHT_ENDINGS)]
        return [name for name in others if name not in known]

    def required_weights(self, names: Iterable[str], weight_map: Mapping[str, str] | None = None) -> set[str]:
        """Returns the existing weight files, and all that the index or the shards' numbers require."""
        names = list(names)
        top = [name for name in names if "/" not in name and not name.startswith(".")]
        if self.engine == "embedded":
            return set(choose_names(top, lambda _: weight_map or {}).names)
        return self._required_by_vllm(self._format_of(names), top, weight_map)

    def index_of(self, names: Iterable[str]) -> str | None:
        """The name of the index, which maps tensors to weight files. None if the start reads no index."""
        names = list(names)
        if not self.has_weights:
            return None
        if self.engine == "embedded":
            return choose_names(names, lambda index: {"": index}).index_name  # its shards may be in subfolders
        index = format_of(self._format_of(names)).index_name
        return index if index in names else None

    def _required_by_vllm(self, load_format: str, top: Sequence[str], weight_map: Mapping[str, str] | None) -> set[str]:
        for pattern in format_of(load_format).patterns:
            found = {name for name in top if fnmatchcase(name, pattern) and not name.endswith(_NOT_FOR_INFERENCE)}
            if not found:
                continue
            if pattern.endswith(".safetensors") and format_of(load_format).index_name in top:
                if weight_map:
                    return set(weight_map.values())
                found = set(filter(is_numbered, found)) or found  # until the content of the index is known
            return with_siblings(found)
        return set()

    def _format_of(self, names: Iterable[str]) -> str:
        """Returns the format that `auto` means. vLLM prefers Mistral's own files, even in subfolders."""
        if self.load_format not in _AUTOMATIC:
            return self.load_format
        has_mistral = any(fnmatchcase(name.rpartition("/")[2], MISTRAL_WEIGHTS) for name in names)
        return "mistral" if has_mistral else "hf"

    def _is_small(self, name: str) -> bool:
        if self.role == "adapter":
            return name == ADAPTER_CONFIG
        if self.role in ("config", "generation_config"):
            return name in _CONFIGS or fnmatchcase(name, "*.py")
        if "/" in name:
            is_module_config = self.role == "model" and _MODULE.fullmatch(name) and name.endswith("/config.json")
            return bool(is_module_config) or (self.role in ("model", "tokenizer") and fnmatchcase(name, _TEMPLATES))
        is_index = self.role == "tokenizer" and name.endswith(".index.json")
        if is_index or name.startswith(".") or _NOT_READ.match(name):
            return False
        return any(fnmatchcase(name, pattern) for pattern in _SMALL_FILES)

    def _module_weights(self, names: Iterable[str]) -> list[str]:
        """Returns weights of sentence-transformers' modules, such as 2_Dense/model.safetensors."""
        if self.role != "model" or not self.has_weights:
            return []
        folders: dict[str, list[str]] = {}
        for name in names:
            folder, _, base = name.partition("/")
            if _MODULE.fullmatch(name):
                folders.setdefault(folder, []).append(base)
        return [
            f"{folder}/{base}"
            for folder, inside in folders.items()
            for base in sorted(choose_names(inside, lambda _: {}).names.intersection(inside))
        ]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Returns the key by which vLLM sorts weight files, so that `shard-10` comes after `shard-9`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
