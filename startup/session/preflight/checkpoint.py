"""Checks the files in a model's folder by names, headers and small JSON files. Does not read the weights."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from base.json_depth import read_json
from base.wording import list_some
from envs.suggestion import did_you_mean
from server.terms.sampling_values import FLAG, find_values
from startup.files.model.checkpoint_folder import WeightFiles, find_weight_files, folder_problems, is_numbered
from startup.files.model.file_faults import (
    UNREADABLE,
    JsonFile,
    file_problem,
    first_bytes,
    json_problem,
    lfs_problem,
    read_json_object,
)
from startup.session.preflight.report import Finding, error, warning

_JSON_FILES: Final = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "preprocessor_config.json",
)
"""Optional files beside config.json and the index. transformers reads each of them that exists."""
_BINARY_TOKENIZERS: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

CONTENT_CHECKS: Final = ("weights", "lfs")
"""Ids of the checks of files that exist. The other checks are about missing files."""

LENGTH_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
_NUMBERS: Final = (
    *LENGTH_KEYS,
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "head_dim",
)
"""The settings that transformers takes only as whole numbers."""
_DTYPES: Final = ("dtype", "torch_dtype")
_DTYPE: Final = re.compile(
    r"(?:b?float|c?u?int|complex|q?u?int|bits|float\d\w*)\d\w*|float|half|double|bool|int|long|short|bit|c(?:half|float|double)"
)
"""Matches the names of types that torch has, or that a newer torch may have. transformers looks them up."""
_SHORT_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}
_TYPE_LISTS: Final = ("configuration_auto.py", "auto_mappings.py")
_KNOWN_TYPE: Final = '"llama"'
"""A model type that each transformers has. If it is not found, types are listed in another way."""
_NAMED_TYPE: Final = re.compile(r'\("([\w.-]+)", "\w+Config"\)')
_COPY: Final = "copy it again from its source. If it came from the hub, delete it, and the start downloads it"
_RENAME: Final = "correct its name, or copy the right file"
"""The advice for a file that may be sound, but has another format than its name says."""
_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = b"\x80"
_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000
"""Maximum size in bytes of a header that the safetensors library accepts."""


class TensorEntry(NamedTuple):
    """A tensor's entry in the header of a safetensors file."""

    dtype: str
    num_elements: int
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile(NamedTuple):
    """The facts in a file's header: the tensors by name, and the file's fault."""

    path: Path
    tensors: dict[str, TensorEntry]
    problem: str | None


class Checkpoint(NamedTuple):
    """The facts about a model's folder, and the folder's faults."""

    folder: Path
    config: dict[str, Any]
    """The content of config.json. Empty if this file is missing or broken."""
    weights: WeightFiles
    tensors: tuple[TensorEntry, ...]
    """The tensors of all safetensors files whose header could be read."""
    weight_bytes: int
    """Size of the weights on disk, in bytes."""
    findings: tuple[Finding, ...]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks the folder. Faults become findings instead of exceptions."""
    try:
        weights = find_weight_files(folder)
    except OSError as err:
        finding = error("model", f"{folder} cannot be read: {err.strerror}")
        nothing = WeightFiles(None, {}, (), ())
        return Checkpoint(folder, {}, nothing, (), 0, (finding,))
    config = read_json_object(folder / "config.json")
    files = [read_safetensors(path) for path in weights.present if path.suffix == ".safetensors"]
    findings = [
        *(error(check, text) for check, text in folder_problems(folder, weights)),
        *_config_findings(folder, config),
        *_shard_findings(folder, weights),
        *_content_findings(weights, files),
        *_index_findings(weights, files),
    ]
    tensors = tuple(tensor for file in files for tensor in file.tensors.values())
    size = sum(path.stat().st_size for path in weights.present)
    return Checkpoint(folder, config.content, weights, tensors, size, tuple(findings))


def small_file_findings(
    folder: Path, needed: Collection[str] = (*_JSON_FILES, *_BINARY_TOKENIZERS)
) -> Iterator[Finding]:
    """Checks the small files of tokenizer and generation. Faults in files not `needed` are warnings."""
    for name in _JSON_FILES:
        if (folder / name).exists() and (problem := json_problem(folder / name)):
            yield (error if name in needed else warning)("json", problem)
    for name in _BINARY_TOKENIZERS:
        if problem := file_problem(folder / name):
            yield (error if name in needed else warning)("lfs", f"{folder / name} {problem}")


def read_transformers(pattern: str) -> list[str]:
    """The texts of the files in the installed transformers that match a pattern."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return []
    paths = Path(spec.origin).parent.glob(pattern)
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def unknown_type_problem(config: Mapping[str, Any]) -> str | None:
    """Why transformers cannot read this config.json: its model type is not known. Takes a few milliseconds.

    None if the type is known, if the model's own code has it, or if transformers' list cannot be read.
    """
    model_type, auto_map = config.get("model_type"), config.get("auto_map")
    if not isinstance(model_type, str) or (isinstance(auto_map, dict) and "AutoConfig" in auto_map):
        return None
    texts = [text for name in _TYPE_LISTS for text in read_transformers(f"models/auto/{name}")]
    if not any(_KNOWN_TYPE in text for text in texts) or any(f'"{model_type}"' in text for text in texts):
        return None
    known = {name for text in texts for name in _NAMED_TYPE.findall(text)}
    guess = did_you_mean(model_type, sorted(known))
    return f"the installed transformers does not know the model_type {model_type!r}{guess}: upgrade it, or correct it"


def dtype_problem(config: Mapping[str, Any]) -> str | None:
    """Why transformers cannot use the type of weights in config.json. It prefers `dtype` to `torch_dtype`."""
    name = next((name for name in _DTYPES if config.get(name) is not None), "")
    value = config.get(name)
    if not isinstance(value, str) or _DTYPE.fullmatch(value) is not None:
        return None
    short = value.lower().removeprefix("torch.")
    wanted = _SHORT_DTYPES.get(short) or (short if _DTYPE.fullmatch(short) else "bfloat16 or float32")
    return f"{name} {value!r} is no type of torch: write {wanted}"


def sampling_findings(path: Path, override: Mapping[str, Any]) -> Iterator[Finding]:
    """Reports values of generation_config.json and of the flag that no request can have, and wrong names."""
    content = read_json_object(path).content if path.is_file() else {}
    of_file, of_flag = find_values(content, str(path)), find_values(override, FLAG)
    for fault in (*of_file.faults, *of_flag.faults):
        report = error if fault.is_fatal else warning
        yield report("generation_config", fault.text)


def _config_findings(folder: Path, config: JsonFile) -> Iterator[Finding]:
    if problem := dtype_problem(config.content):
        yield error("config", f"{folder / 'config.json'}: {problem}")
    if config.content and not config.content.get("model_type") and not config.content.get("architectures"):
        yield error("config", f"{folder / 'config.json'} names neither model_type nor architectures")
    for name in _NUMBERS:
        if isinstance(value := config.content.get(name), bool | float | str):
            yield error("config", f"{folder / 'config.json'} has no whole number as {name}, but {json.dumps(value)}")


def _shard_findings(folder: Path, weights: WeightFiles) -> Iterator[Finding]:
    if weights.index_path and not weights.shard_of and read_json_object(weights.index_path).problem is None:
        yield error("index", f"{weights.index_path} has no weight_map, so no tensor can be found by it")
    is_whole = len(weights.present) > 1 and not weights.missing
    if is_whole and weights.index_path is None and is_numbered(weights.present[0].name):
        yield error("index", f"{folder} has {len(weights.present)} shards but no index: download the *.index.json too")


def _content_findings(weights: WeightFiles, files: list[SafetensorsFile]) -> Iterator[Finding]:
    problems = {file.path: file.problem for file in files}
    for path in weights.present:
        if pointer := lfs_problem(path, first_bytes(path)):
            yield error("lfs", f"{path} {pointer}")
        elif problem := problems[path] if path in problems else _torch_file_problem(path):
            yield error("weights", f"{path} {problem}")


def _torch_file_problem(path: Path) -> str | None:
    """The fault of a `.bin` file. None if no fault is found. The file is not unpickled.

    Since PyTorch 1.6, the file is a zip archive with its directory at the end. An older file is a bare
    pickle, and only the beginning of a pickle can be checked.
    """
    import zipfile  # noqa: PLC0415 - only for these files

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
            if magic == _ZIP_MAGIC:
                zipfile.ZipFile(file).close()
                return None
    except OSError as err:
        return UNREADABLE.format(err.strerror)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        return f"is truncated or corrupt: its {size} bytes have no archive's directory at the end ({err}): {_COPY}"
    if magic.startswith(_PICKLE_MAGIC):
        return None
    return f"is not a PyTorch checkpoint: it has {size} bytes and begins with {magic!r}: {_RENAME}"


def _index_findings(weights: WeightFiles, files: list[SafetensorsFile]) -> Iterator[Finding]:
    """Reports tensors that the index assigns to a shard, but that the shard's header does not have."""
    if weights.index_path is None:
        return
    folder = weights.index_path.parent
    held: dict[str, Mapping[str, TensorEntry]] = {}
    for file in files:
        if file.tensors:
            held[file.path.relative_to(folder).as_posix()] = file.tensors
    lost: dict[str, list[str]] = {}
    for tensor, shard in weights.shard_of.items():
        if shard in held and tensor not in held[shard]:
            lost.setdefault(shard, []).append(tensor)
    for shard, tensors in sorted(lost.items()):
        yield error(
            "index",
            f"{weights.index_path} lists {len(tensors)} tensors that {shard} does not have ({list_some(tensors, 2)}): "
            "index and shards come from different downloads",
        )


def read_safetensors(path: Path) -> SafetensorsFile:
    """Reads the header and reports the file's fault. Never raises.

    The file begins with the header's length (8 bytes, little-endian). The header, a JSON object, follows, and
    then the data of the tensors.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header, data_begin = _read_header(file, size)
        tensors = {name: _entry(name, value) for name, value in header.items() if name != "__metadata__"}
    except OSError as err:
        return SafetensorsFile(path, {}, UNREADABLE.format(err.strerror))
    except _HeaderError as err:
        return SafetensorsFile(path, {}, str(err))
    wanted = data_begin + max((tensor.end for tensor in tensors.values()), default=0)
    fault = "truncated" if size < wanted else "too long"
    problem = f"is {fault}: its header calls for {wanted} bytes, the file has {size}: {_COPY}"
    return SafetensorsFile(path, tensors, problem if size != wanted else None)


class _HeaderError(ValueError):
    """The header is invalid, so nothing more can be checked."""

    def __init__(self, message: str, advice: str = _COPY) -> None:
        super().__init__(f"{message}: {advice}")


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise _HeaderError(f"is truncated: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    data_begin = _LENGTH_BYTES + length
    if length > _MAX_HEADER_BYTES:
        begin = f"its first 8 bytes say that the header has {length} bytes"
        raise _HeaderError(f"is not a safetensors file: {begin}", _RENAME)
    if data_begin > size:
        raise _HeaderError(f"is truncated: the header alone needs {data_begin} bytes, the file has {size}")
    try:
        header = read_json(file.read(length))
    except ValueError as err:
        raise _HeaderError(f"has a corrupt header: {err}") from err
    if not isinstance(header, dict):
        raise _HeaderError("has a corrupt header: it is not a JSON object")
    return header, data_begin


def _entry(name: str, value: Any) -> TensorEntry:
    try:
        begin, end = value["data_offsets"]
        shape = value["shape"]
        entry = TensorEntry(str(value["dtype"]), math.prod(shape), begin, end)
    except (TypeError, KeyError, ValueError) as err:
        raise _HeaderError(f"has a corrupt header: tensor {name!r} lacks dtype, shape or data_offsets") from err
    are_numbers = all(isinstance(number, int) and number >= 0 for number in entry[1:4])
    if not are_numbers or begin > end:
        raise _HeaderError(f"has a corrupt header: tensor {name!r} lies at {begin} to {end}")
    return entry
