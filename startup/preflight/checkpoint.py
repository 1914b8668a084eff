"""Checks the files of a model's folder by names, headers and small JSON files; does not read the weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.wording import list_some
from startup.model.checkpoint_folder import WeightFiles, find_weight_files, folder_problems
from startup.model.json_file import JsonFile, json_problem, read_json_object, unread_lfs_problem
from startup.preflight.report import Finding, error
from startup.preflight.safetensors_header import SafetensorsFile, TensorEntry, read_safetensors

_JSON_FILES: Final = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "preprocessor_config.json",
)
"""Optional files beside config.json and the index; transformers reads them if they exist."""
_BINARY_TOKENIZERS: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

CONTENT_CHECKS: Final = ("weights", "lfs")
"""Checks of existing files; the others are about missing files."""

_UNREADABLE: Final = "cannot be read"
_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = b"\x80"


class Checkpoint(NamedTuple):
    """The content of a model's folder."""

    folder: Path
    config: dict[str, Any]
    """The content of config.json; empty if it is missing or broken."""
    weights: WeightFiles
    tensors: tuple[TensorEntry, ...]
    """The tensors of all safetensors files with a readable header."""
    weight_bytes: int
    """Size of the weights on disk."""
    findings: tuple[Finding, ...]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks the folder; never raises: faults are findings."""
    try:
        weights = find_weight_files(folder)
    except OSError as err:
        finding = error("model", f"{folder} cannot be read: {err.strerror}")
        return Checkpoint(
            folder, config={}, weights=WeightFiles(None, {}, (), ()), tensors=(), weight_bytes=0, findings=(finding,)
        )
    config = read_json_object(folder / "config.json")
    files = [read_safetensors(path) for path in weights.present if _is_safetensors(path)]
    findings = [
        *(error(check, text) for check, text in folder_problems(folder, weights)),
        *_config_findings(folder, config),
        *_shard_findings(folder, weights),
        *_content_findings(weights, files),
        *_index_findings(weights, files),
    ]
    tensors = tuple(tensor for file in files for tensor in file.tensors.values())
    size = sum(path.stat().st_size for path in weights.present)
    return Checkpoint(
        folder,
        config=config.content,
        weights=weights,
        tensors=tensors,
        weight_bytes=size,
        findings=tuple(findings),
    )


def small_file_findings(folder: Path) -> Iterator[Finding]:
    """Checks the small files that tokenizer and generation read."""
    for name in _JSON_FILES:
        if (folder / name).exists() and (problem := json_problem(folder / name)):
            yield error("json", problem)
    for name in _BINARY_TOKENIZERS:
        if pointer := unread_lfs_problem(folder / name):
            yield error("lfs", pointer)


def _config_findings(folder: Path, config: JsonFile) -> Iterator[Finding]:
    if config.content and not config.content.get("model_type") and not config.content.get("architectures"):
        yield error("config", f"{folder / 'config.json'} names neither model_type nor architectures")


def _shard_findings(folder: Path, weights: WeightFiles) -> Iterator[Finding]:
    if weights.index_path and not weights.shard_of and read_json_object(weights.index_path).problem is None:
        yield error("index", f"{weights.index_path} has no weight_map, so no tensor can be found by it")
    if (
        len(weights.present) > 1
        and not weights.missing
        and weights.index_path is None
        and _is_numbered(weights.present[0])
    ):
        yield error("index", f"{folder} has {len(weights.present)} shards but no index: download the *.index.json too")


def _content_findings(weights: WeightFiles, files: list[SafetensorsFile]) -> Iterator[Finding]:
    problems = {file.path: file.problems for file in files}
    for path in weights.present:
        if pointer := unread_lfs_problem(path):
            yield error("lfs", pointer)
        elif path in problems:
            for problem in problems[path]:
                yield _broken(path, problem)
        elif torch_problem := _torch_file_problem(path):
            yield _broken(path, torch_problem)


def _torch_file_problem(path: Path) -> str | None:
    """The fault of a `.bin` file, which is not unpickled.

    Since PyTorch 1.6 it is a zip archive with its directory at the end. An older file is a bare pickle, of
    which only the beginning can be checked.
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
        return f"{_UNREADABLE}: {err.strerror}"
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        return f"is truncated or corrupt: its {size} bytes have no archive's directory at the end ({err})"
    if magic.startswith(_PICKLE_MAGIC):
        return None
    return f"is not a PyTorch checkpoint: it has {size} bytes and begins with {magic!r}"


def _broken(path: Path, problem: str) -> Finding:
    advice = "download it again, or delete it if it came from the hub and start again"
    if problem.startswith(_UNREADABLE):
        advice = "give this user the right to read it"
    return error("weights", f"{path} {problem}: {advice}")


def _index_findings(weights: WeightFiles, files: list[SafetensorsFile]) -> Iterator[Finding]:
    """Reports tensors that the index lists in a shard whose header does not contain them."""
    held = {file.path.name: file.tensors for file in files if file.tensors}
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


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _is_numbered(path: Path) -> bool:
    return "-of-" in path.name
