"""The files of a model's folder: its weights in the order of loading, and whether the model can be served.

This module reads only file names and small JSON files.
"""

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import read_json
from base.wording import list_some
from startup.files.model.file_faults import first_problem, places_near, read_json_object

_CHOICES: Final = (
    ("model.safetensors", None),
    (r"model-\d+-of-\d+\.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", None),
    (r"pytorch_model-\d+-of-\d+\.bin", "pytorch_model.bin.index.json"),
    (r".*\.safetensors", None),
    (r"pytorch_model.*\.bin", None),
)
"""Patterns for weight files, each with its index, in order of preference."""

_NUMBERED: Final = re.compile(r"(.+-)(\d+)((?i:-of-)(\d+)\.\w+)")
"""Matches the name of one of several files of a divided model, in any format."""
_MAX_PARTS: Final = 10_000
_MAX_PARSED_BYTES: Final = 512 << 10
"""The largest index that is parsed, in bytes. Parsing takes about 9 ms per MB."""
_TOKENIZERS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken*.json",
    "tokenizer*.tok.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "spiece.model",
)
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_VOCABULARIES: Final = (
    *(name for name in _TOKENIZERS if name != _TOKENIZER_CONFIG),
    "vocab*",
    "merges.txt",
    "*.model",
    "*bpe*",
)
"""Patterns for files with the tokens of a tokenizer."""
_OF_BYTES: Final = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes of tokenizers whose tokens are bytes or characters, so that they need no file."""
_OF_ONE_FILE: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of tokenizers that only tokenizer.json can describe."""
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final[tuple[str, ...]] = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
"""File names of a LoRA adapter's weights, in order of preference."""


_DEFAULT_RANK: Final = 16
_RANKS: Final = (32, 64, 128, 256, 320, 512)
"""The larger values of vLLM's --max-lora-rank."""


class WeightFiles(NamedTuple):
    """The weight files of a folder in one format. Copies of the weights in other formats are ignored."""

    index_path: Path | None
    """The file that maps tensors to shards."""
    shard_of: Mapping[str, str]
    """The file of each tensor, from the index. Empty if there is no readable index."""
    present: tuple[Path, ...]
    """Existing weight files in the order in which transformers loads them. Dangling links do not count."""
    missing: tuple[str, ...]
    """Shards that do not exist, although the index or the other shards' numbers require them."""


class FolderProblem(NamedTuple):
    """Why the folder's model cannot be served."""

    check: str
    """The id of the check that the preflight reports with this problem."""
    text: str


class ChosenNames(NamedTuple):
    """The names of the weight files in one format."""

    index_name: str | None
    shard_of: Mapping[str, str]
    names: frozenset[str]
    """All names that the index or the shards' numbers require, whether the files exist or not."""


def choose_names(names: Collection[str], read_index: Callable[[str], Mapping[str, str]]) -> ChosenNames:
    """Chooses the weight files of one format as transformers does.

    `read_index` gets the name of an index, and returns the file of each tensor. Its result is empty if the
    files are not known.
    """
    for pattern, index in _CHOICES:
        found = [name for name in names if re.fullmatch(pattern, name) and not name.startswith(".")]
        has_index = index is not None and index in names
        shard_of = read_index(index) if index is not None and has_index else {}
        wanted = frozenset(shard_of.values()) or frozenset(with_siblings(found))
        if found or wanted:
            return ChosenNames(index if has_index else None, shard_of, wanted)
    return ChosenNames(None, {}, frozenset())


def find_weight_files(folder: Path, *, with_tensors: bool = True) -> WeightFiles:
    """Finds the weight files. Reads only file names and the index.

    Args:
        folder: the model's folder.
        with_tensors: whether `shard_of` must name the tensors. If False, a large index is not parsed.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if entry.is_file()}

    def read(index: str) -> Mapping[str, str]:
        return read_index(folder / index) if with_tensors else read_shard_names(folder / index, names)

    chosen = choose_names(names, read)
    index_path = folder / chosen.index_name if chosen.index_name else None
    names |= files_below(folder, chosen.names)
    present = tuple(folder / name for name in sorted(chosen.names & names))
    return WeightFiles(index_path, chosen.shard_of, present, tuple(sorted(chosen.names - names)))


def files_below(folder: Path, names: Iterable[str]) -> set[str]:
    """Returns the names of existing files in subfolders. A name or a link may not lead to another folder."""
    below = (name for name in names if "/" in name and not name.startswith("/"))
    inside = [name for name in below if ".." not in name.split("/")]
    root = folder.resolve() if inside else folder
    found = set()
    for name in inside:
        file = folder / name
        if file.is_file() and file.parent.resolve().is_relative_to(root):
            found.add(name)
    return found


def model_problem(folder: Path) -> str | None:
    """Why the folder's model cannot be served. None if it can be served."""
    try:
        weights = find_weight_files(folder, with_tensors=False)
    except OSError as err:
        return f"{folder} cannot be read: {err.strerror}"
    return next((problem.text for problem in folder_problems(folder, weights)), None)


def folder_problems(folder: Path, weights: WeightFiles) -> Iterator[FolderProblem]:
    """Yields a problem for missing files, and for a configuration or an index that cannot be read."""
    has_config = (folder / "config.json").exists()
    has_weights = weights.present or weights.missing
    if not has_weights and (problem := first_problem(sorted(folder.glob(".*.safetensors")))):
        yield FolderProblem("no_weights", problem)
        return
    if not has_config:
        yield FolderProblem("config", no_config_problem(folder))
    elif problem := read_json_object(folder / "config.json").problem:
        yield FolderProblem("config", problem)
    if weights.index_path and not weights.shard_of and (problem := read_json_object(weights.index_path).problem):
        yield FolderProblem("index", problem)
    if weights.missing:
        total = len(weights.missing) + len(weights.present)
        lacks = f"{folder} lacks {len(weights.missing)} of {total} shards: {list_some(weights.missing)}"
        source = f", or correct {weights.index_path.name}" if weights.index_path else ""
        yield FolderProblem("shards", f"{lacks}. Copy them there from the model's source{source}")
    elif not weights.present:
        near = places_near(folder, "*.safetensors") if has_config else ""
        yield FolderProblem("no_weights", f"{folder} has no weights: no *.safetensors and no pytorch_model*.bin{near}")


def no_config_problem(folder: Path) -> str:
    """Says that the folder has no config.json, and which folders near it have one, or what the folder has."""
    if (folder / ADAPTER_CONFIG).exists():
        return _adapter_as_model(folder)
    return f"{folder} has no config.json, so it is not a model folder{places_near(folder, 'config.json')}"


def _adapter_as_model(folder: Path) -> str:
    """Says that the folder has an adapter, and how it is served."""
    config = read_json_object(folder / ADAPTER_CONFIG).content
    base, kind, rank = config.get("base_model_name_or_path"), config.get("peft_type", "LORA"), config.get("r")
    base = base if isinstance(base, str) and base else ""
    what = f"{folder} is an adapter of {base or 'another model'}"
    if kind != "LORA" or config.get("use_dora"):
        form = "DoRA" if kind == "LORA" else str(kind)
        return f"{what}, of the kind {form}, which no engine serves: merge it into that model, and serve the result"
    ranks = [most for most in _RANKS if isinstance(rank, int) and most >= rank > _DEFAULT_RANK]
    words = ["vllm-cli serve", shlex.quote(base or "BASE_MODEL"), "--engine vllm --enable-lora"]
    words += [f"--max-lora-rank {ranks[0]}"] if ranks else []
    return f"{what}: run `{' '.join(words)} --lora-modules {shlex.quote(f'{folder.name}={folder}')}`"


def tokenizer_problem(folder: Path) -> str | None:
    """Why the folder's tokenizer cannot be used. None if it can be used."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern)):
        return f"{folder} has no tokenizer. Name one with --tokenizer{places_near(folder, 'tokenizer*.json')}"
    return None


class TokenizerFault(NamedTuple):
    """A tokenizer without its tokens."""

    text: str
    is_fatal: bool
    """Whether the start certainly fails. Otherwise transformers may make a tokenizer that knows no token."""


def vocabulary_fault(folder: Path) -> TokenizerFault | None:
    """The fault of a tokenizer that consists of its settings. None if it has tokens, or needs no file."""
    if not (folder / _TOKENIZER_CONFIG).is_file():
        return None
    if any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None
    settings = read_json_object(folder / _TOKENIZER_CONFIG).content
    kind = settings.get("tokenizer_class")
    if kind in _OF_BYTES or settings.get("auto_map") or not settings:
        return None
    what = f"{folder} has {_TOKENIZER_CONFIG}, but no file with the tokens, such as tokenizer.json"
    remedy = f"copy it there, or name a tokenizer with --tokenizer{places_near(folder, 'tokenizer.json')}"
    return TokenizerFault(f"{what}: {remedy}", is_fatal=kind in _OF_ONE_FILE)


def adapter_problem(folder: Path) -> str | None:
    """Why the folder's LoRA adapter cannot be used. None if it can be used."""
    if not (folder / ADAPTER_CONFIG).exists():
        return f"{folder} has no {ADAPTER_CONFIG}, so it is not an adapter{places_near(folder, ADAPTER_CONFIG)}"
    if not any((folder / name).exists() for name in ADAPTER_WEIGHTS):
        return f"{folder} has no {ADAPTER_WEIGHTS[0]}"
    return first_problem(folder / name for name in ADAPTER_WEIGHTS)


def modeling_module(folder: Path) -> str | None:
    """The module of transformers with the model's class, such as `transformers.models.llama.modeling_llama`.

    None if config.json has no usable model type. Nearly all modules are named after their model type. For
    other model types, the returned module does not exist, so callers must expect that its import fails.
    """
    model_type = read_json_object(folder / "config.json").content.get("model_type")
    name = str(model_type or "").replace("-", "_")
    return f"transformers.models.{name}.modeling_{name}" if re.fullmatch(r"[a-z][a-z0-9_]*", name) else None


def read_index(path: Path) -> dict[str, str]:
    """Maps the tensors in an index to their files. Empty if the index cannot be read."""
    try:
        content: Any = read_json(path.read_text(encoding="utf-8"))  # of any length
    except (OSError, ValueError):
        return {}
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        return {}
    return {str(tensor): name for tensor, name in weight_map.items() if isinstance(name, str)}


def read_shard_names(index: Path, names: Collection[str]) -> Mapping[str, str]:
    """Returns a mapping whose values are the files that an index names.

    A large index is not parsed if `names` has exactly one complete set of numbered shards. The index must
    name these shards, so they are the mapping's keys and values.
    """
    with suppress(OSError):
        if index.stat().st_size > _MAX_PARSED_BYTES:
            shards = {name for name in names if is_numbered(name)}
            if shards and with_siblings({min(shards)}) == shards:
                return {name: name for name in shards}
    return read_index(index)


def is_numbered(name: str) -> bool:
    """Whether the name belongs to one of several numbered shards."""
    match = _NUMBERED.fullmatch(name)
    return match is not None and int(match[4]) > 1


def shard_names(name: str) -> list[str]:
    """Returns the names of all files of a numbered file's set. For any other file, returns only its name."""
    match = _NUMBERED.fullmatch(name)
    if match is None or int(match[4]) > _MAX_PARTS:
        return [name]
    stem, number, rest, total = match.groups()
    return [f"{stem}{i:0{len(number)}}{rest}" for i in range(1, int(total) + 1)]


def with_siblings(names: Iterable[str]) -> set[str]:
    """Returns the names, and all shards of the numbered sets to which the names belong."""
    found: set[str] = set()
    for name in names:
        if name not in found:
            found.update(shard_names(name))
    return found
