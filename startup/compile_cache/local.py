"""The compiled models of this machine: their records in our cache folder, their files in vLLM's."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from base.machine.files import write_whole
from envs import foreign
from envs.home import expand_home
from envs.registry import env
from startup.caches import cache_folder
from startup.compile_cache.record import CompiledModel, FileFacts

_RECORDS: Final = "compiled"
_COMPILED: Final = "torch_compile_cache"
"""Below vLLM's cache folder."""
AOT: Final = f"{_COMPILED}/torch_aot_compile"
"""Below vLLM's cache folder: a folder for each key, with one for each rank."""
ENTRY: Final = "model"
"""In a rank's folder: the file that vLLM looks for."""
VLLM: Final = "vllm"
_BESIDE: Final = ("deep_gemm", "flashinfer_autotune_cache")
"""Below vLLM's cache folder: kernels of GPUs and their tuning, whatever the model."""
_KERNEL_BYTES: Final = 1 << 30
"""Most bytes of such kernels in one archive; the newest files count."""
_TEMPORARY: Final = (".lock", ".tmp", ".aside")
_FAILED: Final = ".failed"
_SHARED: Final = ".shared"


def vllm_root() -> Path:
    """vLLM's cache folder."""
    return env.VLLM_CACHE_ROOT.get().absolute()


def caches() -> dict[str, Path]:
    """The folders that compilers write to, by their name in a record."""
    return {
        VLLM: vllm_root(),
        "triton": Path(foreign.text_of("TRITON_CACHE_DIR") or expand_home("~/.triton/cache")),
        "flashinfer": Path(foreign.text_of("FLASHINFER_WORKSPACE_BASE") or expand_home("~")) / ".cache/flashinfer",
    }


def records_folder() -> Path:
    """Where this machine's records are."""
    return cache_folder() / _RECORDS


def read_records(folder: Path | None = None) -> list[CompiledModel]:
    """All valid records of a folder, the newest first; by default this machine's."""
    found = []
    for path in (folder or records_folder()).glob("*.json"):
        with suppress(OSError, ValueError):
            found.append(CompiledModel.from_json(path.read_bytes()))
    return sorted(found, key=lambda record: record.created_at, reverse=True)


def record_path(record: CompiledModel, folder: Path | None = None) -> Path:
    """The file of a record; its time of change is that of the last use."""
    return (folder or records_folder()) / record.file_name


def save_record(record: CompiledModel, folder: Path | None = None) -> None:
    """Raises OSError."""
    path = record_path(record, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, record.to_json().decode())


def is_installed(record: CompiledModel) -> bool:
    """Whether vLLM would find the compiled model, for every rank of the record."""
    return all((_key_folder(record.key) / rank / ENTRY).is_file() for rank in record.ranks)


def unrecorded_keys() -> set[str]:
    """Keys of compiled models without a record."""
    known = {record.key for record in read_records()}
    return {path.parts[-3] for path in _key_folder("*").parent.glob(f"*/*/{ENTRY}")} - known


def files_of(record: CompiledModel, more: Iterable[str] = ()) -> dict[str, Path]:
    """The files that vLLM needs in order not to compile again, by their names in a record.

    Args:
        record: of the compiled model.
        more: further folders that vLLM has named for it.
    """
    folders = caches()
    root = folders.pop(VLLM)
    base = _key_folder(record.key)
    others = {path.name for path in base.glob("rank_*")} - set(record.ranks)
    chosen = {path for path in _files(base) if path.relative_to(base).parts[0] not in others}
    chosen |= {path for folder in more if Path(folder).is_relative_to(root) for path in _files(Path(folder))}
    found = {f"{VLLM}/{path.relative_to(root).as_posix()}": path for path in sorted(chosen)}
    if record.hardware.gpus:
        found |= _newest({VLLM: [root / name for name in _BESIDE], **{name: [path] for name, path in folders.items()}})
    return found


def install(unpacked: Path) -> None:
    """Moves the files of an unpacked archive to where compilers look for them; what exists is not replaced.

    The file that vLLM looks for is the last one of each rank, so that vLLM finds all or nothing. What is for
    other folders, such as our own, is left out.

    Raises:
        OSError: a folder cannot be written to.
    """
    folders = caches()
    for path in sorted(_files(unpacked), key=lambda path: (path.name == ENTRY, path)):
        cache, *parts = path.relative_to(unpacked).parts
        if cache in folders and (cache != VLLM or parts[0] in (_COMPILED, *_BESIDE)):
            target = folders[cache].joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                _move(path, target)


def remove(record: CompiledModel) -> None:
    """Removes a compiled model and its record; what others use, too, stays."""
    base = _key_folder(record.key)
    others = [_further_folders(other) for other in read_records() if record_path(other) != record_path(record)]
    for folder in (*(base / rank for rank in record.ranks), base, *_further_folders(record).difference(*others)):
        aside = folder.with_name(f"{folder.name}.{os.getpid()}.aside")
        if folder != base or not any(base.glob(f"rank_*/{ENTRY}")):
            with suppress(OSError):
                folder.rename(aside)  # vLLM finds all or nothing
                shutil.rmtree(aside, ignore_errors=True)
    for suffix in (".json", _FAILED, _SHARED):
        record_path(record).with_suffix(suffix).unlink(missing_ok=True)


def remove_all() -> None:
    """Removes all compiled models, with and without a record; raises OSError."""
    for folder in (compiled_folder(), records_folder()):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def num_bytes(record: CompiledModel) -> int:
    """The size of its files, without kernels, which others use, too; 0 if they are gone."""
    own = (facts.size for name, facts in record.files.items() if name.startswith(f"{VLLM}/{_COMPILED}/"))
    return sum(own) if is_installed(record) else 0


def num_bytes_of_all() -> int:
    """The size of what vLLM's folder has, with and without a record."""
    total = 0
    for path in _files(compiled_folder()):
        with suppress(FileNotFoundError):  # a start may be writing
            total += path.stat().st_size
    return total


def damaged_file(record: CompiledModel) -> str | None:
    """The first file that is missing or not as it was recorded; None if there is none."""
    for name, facts in record.files.items():
        cache, _, path = name.partition("/")
        if cache != VLLM or f"/{record.key}/" not in name or name.endswith(_TEMPORARY):
            continue  # others may have been written anew
        with suppress(OSError):
            if FileFacts.of(vllm_root() / path) == facts:
                continue
        return path
    return None


def note_failure(record: CompiledModel) -> None:
    """A start that had loaded the compiled model has failed."""
    with suppress(OSError), record_path(record).with_suffix(_FAILED).open("a") as file:
        file.write("x")


def num_failures(record: CompiledModel) -> int:
    """How many starts in a row have failed after they had loaded it."""
    with suppress(OSError):
        return record_path(record).with_suffix(_FAILED).stat().st_size
    return 0


def note_use(record: CompiledModel) -> None:
    """A start that has loaded the compiled model has become ready."""
    with suppress(OSError):
        os.utime(record_path(record))
        record_path(record).with_suffix(_FAILED).unlink(missing_ok=True)


def is_shared(record: CompiledModel, location: str) -> bool:
    """Whether the location has had its archive."""
    with suppress(OSError):
        return location in record_path(record).with_suffix(_SHARED).read_text().splitlines()
    return False


def note_shared(record: CompiledModel, location: str) -> None:
    """The location has its archive."""
    with suppress(OSError), record_path(record).with_suffix(_SHARED).open("a") as file:
        file.write(f"{location}\n")


def _move(path: Path, target: Path) -> None:
    """The target is whole or missing, also on another file system, to which the file is copied."""
    beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        shutil.move(path, beside)
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)


def compiled_folder() -> Path:
    """Where vLLM keeps compiled models."""
    return vllm_root() / _COMPILED


def _key_folder(key: str) -> Path:
    return vllm_root() / AOT / key


def _further_folders(record: CompiledModel) -> set[Path]:
    """Folders that vLLM has chosen for it beside those of the keys."""
    root, aot = vllm_root(), _key_folder(".")
    paths = (root / name.removeprefix(f"{VLLM}/") for name in record.files if name.startswith(f"{VLLM}/{_COMPILED}/"))
    return {folder for path in paths for folder in path.parents if folder.parent == aot.parent and folder != aot}


def _files(folder: Path) -> Iterator[Path]:
    """Regular files, without temporary ones."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if not name.endswith(_TEMPORARY) and file.is_file() and not file.is_symlink():
                yield file


def _newest(folders: Mapping[str, Iterable[Path]]) -> dict[str, Path]:
    """The newest files of these folders, up to the limit."""
    roots = caches()
    found = [(name, path, path.stat()) for name, paths in folders.items() for path in paths for path in _files(path)]
    chosen, left = {}, _KERNEL_BYTES
    for name, path, status in sorted(found, key=lambda item: -item[2].st_mtime):
        left -= status.st_size
        if left < 0:
            break
        chosen[f"{name}/{path.relative_to(roots[name]).as_posix()}"] = path
    return chosen
