"""The compiled models of this machine: their records in our cache folder, their files in vLLM's."""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from base.json_depth import read_json
from base.machine.files import write_whole
from envs import foreign
from envs.home import expand_home
from envs.registry import env
from startup.compiled_models.record import CompiledModel, FileFacts, Hardware
from startup.ground.caches import cache_folder

_RECORDS: Final = "compiled"
_COMPILED: Final = "torch_compile_cache"
"""Folder of compiled models, below vLLM's cache folder."""
AOT: Final = f"{_COMPILED}/torch_aot_compile"
"""Below vLLM's cache folder: contains a folder for each key, which contains a folder for each rank."""
ENTRY: Final = "model"
"""The file that vLLM looks for in a rank's folder."""
VLLM: Final = "vllm"
_BESIDE: Final = ("deep_gemm", "flashinfer_autotune_cache")
"""Folders below vLLM's cache folder with GPU kernels and their tuning, which belong to no single model."""
_LEAST_PARTS: Final = {
    **{"triton": 1, "flashinfer": 1, "humming": 1, "tilelang": 1, f"{VLLM}/{_COMPILED}": 3},
    **dict.fromkeys((f"{VLLM}/{name}" for name in _BESIDE), 2),
}
"""A file's path in these folders has at least so many parts. A shorter path belongs to a folder."""
_KERNEL_BYTES: Final = 1 << 30
"""Most bytes of such kernels in one archive. The newest files are taken."""
_LEFT_OUT: Final = (".lock", ".tmp", ".aside", ".log", "/cache_key_factors.json")
"""Endings of paths that are left out: temporary files, logs, values of variables for vLLM's developers."""
_TRITON_GROUP: Final = "__grp__"
"""Names of the files in which Triton lists a kernel's files, with absolute paths, begin like this."""
_INCOMING: Final = "incoming-"
_LEFT_S: Final = 60.0
"""Seconds. An older folder without a lock was left by a killed helper."""
_FAILED: Final = ".failed"
_EXCLUDED: Final = ".excluded"
_HARDWARE: Final = "hardware"
"""File with the name of the hardware on which vLLM's keys get no addition."""


def vllm_root() -> Path:
    """vLLM's cache folder."""
    return env.VLLM_CACHE_ROOT.get().absolute()


def caches() -> dict[str, Path]:
    """The folders to which compilers write, by their names in a record."""
    home = expand_home("~")
    triton = Path(foreign.text_of("TRITON_HOME") or home) / ".triton/cache"
    return {
        VLLM: vllm_root(),
        "triton": Path(foreign.text_of("TRITON_CACHE_DIR") or triton),
        "flashinfer": Path(foreign.text_of("FLASHINFER_WORKSPACE_BASE") or home) / ".cache/flashinfer",
        "humming": Path(foreign.text_of("HUMMING_CACHE_DIR") or f"{home}/.humming/cache"),
        "tilelang": Path(foreign.text_of("TILELANG_CACHE_DIR") or f"{home}/.tilelang/cache"),
    }


def records_folder() -> Path:
    """The folder of this machine's records."""
    return cache_folder() / _RECORDS


def claim_keys(hardware: Hardware) -> str:
    """The text to add to vLLM's keys for this hardware. Empty for the first hardware in the folder.

    Unlike machines may share a folder. vLLM's key lacks the instruction sets and, in some releases, the GPUs.
    """
    first = records_folder() / _HARDWARE
    with suppress(OSError):
        first.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=first.parent) as whole:
            whole.write(hardware.name)
            whole.flush()
            first.hardlink_to(whole.name)
    with suppress(OSError):
        return "" if first.read_text() == hardware.name else hardware.name
    return ""


def read_records(folder: Path | None = None) -> list[CompiledModel]:
    """All valid records of a folder, by default this machine's; the newest first."""
    found = []
    for path in (folder or records_folder()).glob("*.json"):
        with suppress(OSError, ValueError):
            found.append(CompiledModel.from_json(path.read_bytes()))
    return sorted(found, key=lambda record: record.created_at, reverse=True)


def record_path(record: CompiledModel, folder: Path | None = None) -> Path:
    """The file of a record. Its time of change is the time of the last use."""
    return (folder or records_folder()) / record.file_name


def save_record(record: CompiledModel, folder: Path | None = None) -> None:
    """Writes a record. Raises OSError."""
    path = record_path(record, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, record.to_json().decode(), mode=0o600)


def is_installed(record: CompiledModel) -> bool:
    """Whether vLLM would find the compiled model, for every rank of the record."""
    return all((_key_folder(record.key) / rank / ENTRY).is_file() for rank in record.ranks)


def unrecorded_keys() -> set[str]:
    """Keys of compiled models that have no record."""
    known = {record.key for record in read_records()}
    return {path.parts[-3] for path in _key_folder("*").parent.glob(f"*/*/{ENTRY}")} - known


def files_of(record: CompiledModel, more: Iterable[str] = (), since_s: float = 0.0) -> dict[str, Path]:
    """The files without which vLLM would compile again, by their names in a record.

    Args:
        record: of the compiled model.
        more: further folders that vLLM has named for it.
        since_s: kernels changed since then, in seconds since 1970, belong to this start.
    """
    folders = caches()
    root = folders.pop(VLLM)
    base = _key_folder(record.key)
    others = {path.name for path in base.glob("rank_*")} - set(record.ranks)
    chosen = {path for path in _files(base) if path.relative_to(base).parts[0] not in others}
    chosen |= {path for folder in more if Path(folder).is_relative_to(root) for path in _files(Path(folder))}
    found = {f"{VLLM}/{path.relative_to(root).as_posix()}": path for path in sorted(chosen)}
    places = {VLLM: [root / name for name in _BESIDE], **{name: [path] for name, path in folders.items()}}
    return found | _newest(places, {name for each in read_records() for name in each.files}, since_s)


def install(unpacked: Path) -> list[str]:
    """Moves the files of an unpacked archive to where compilers look for them. Replaces no existing file.

    For each rank, the file that vLLM looks for comes last, so that vLLM finds all or nothing. Files for other
    folders, such as our own, are left out.

    Returns:
        Why kernels of other caches could not be written; at most one reason for each cache.

    Raises:
        OSError: vLLM's folder cannot be written to.
    """
    folders = caches()
    problems: dict[str, str] = {}
    for path in sorted(_files(unpacked), key=lambda path: (path.name == ENTRY, path)):
        cache, *parts = path.relative_to(unpacked).parts
        least = _LEAST_PARTS.get("/".join((cache, *parts[: cache == VLLM])))
        if least is not None and len(parts) >= least:
            try:
                _place(path, folders[cache].joinpath(*parts))
            except OSError as err:
                if cache == VLLM:
                    raise
                problems[cache] = f"kernels cannot be written to {folders[cache]}: {err.strerror or err}"
    return list(problems.values())


def remove(record: CompiledModel) -> None:
    """Removes a compiled model and its record, but no files that others use, too."""
    base = _key_folder(record.key)
    others = [_further_folders(other) for other in read_records() if record_path(other) != record_path(record)]
    for folder in (*(base / rank for rank in record.ranks), base, *_further_folders(record).difference(*others)):
        aside = folder.with_name(f"{folder.name}.{os.getpid()}.aside")
        if folder != base or not any(base.glob(f"rank_*/{ENTRY}")):
            with suppress(OSError):
                folder.rename(aside)  # then vLLM finds all or nothing
                shutil.rmtree(aside, ignore_errors=True)
    for suffix in (".json", _FAILED):
        record_path(record).with_suffix(suffix).unlink(missing_ok=True)


def remove_all() -> None:
    """Removes all compiled models, with and without a record. Raises OSError."""
    for folder in (compiled_folder(), records_folder()):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def num_bytes(record: CompiledModel) -> int:
    """The size of the model's files, without kernels, which others use too. 0 if the files are gone."""
    own = (facts.size for name, facts in record.files.items() if name.startswith(f"{VLLM}/{_COMPILED}/"))
    return sum(own) if is_installed(record) else 0


def num_bytes_of_all() -> int:
    """The size of all compiled models in vLLM's folder, and of what killed helpers have left there."""
    total = 0
    for folder in (compiled_folder(), *records_folder().glob(f"{_INCOMING}*")):
        for path in _files(folder):
            with suppress(FileNotFoundError):  # a start may be writing
                total += path.stat().st_size
    return total


def damaged_file(record: CompiledModel) -> str | None:
    """The first file that is missing or has changed since it was recorded. None if all are right."""
    for name, facts in record.files.items():
        cache, _, path = name.partition("/")
        if cache != VLLM or f"/{record.key}/" not in name or name.endswith(_LEFT_OUT) or f"/{_TRITON_GROUP}" in name:
            continue  # other files may have been written anew
        with suppress(OSError):
            if FileFacts.of(vllm_root() / path) == facts:
                continue
        return path
    return None


def note_failure(record: CompiledModel) -> None:
    """Counts a failed start that had loaded the compiled model."""
    with suppress(OSError), record_path(record).with_suffix(_FAILED).open("a") as file:
        file.write("x")


def num_failures(record: CompiledModel) -> int:
    """How many starts in a row have failed after they had loaded the model."""
    with suppress(OSError):
        return record_path(record).with_suffix(_FAILED).stat().st_size
    return 0


def note_use(record: CompiledModel) -> None:
    """Called when a start that loaded the model is ready: renews the last use, forgets earlier failures."""
    with suppress(OSError):
        os.utime(record_path(record))
        record_path(record).with_suffix(_FAILED).unlink(missing_ok=True)


def exclude(record: CompiledModel) -> None:
    """Prevents that this compiled model is fetched from a location again."""
    with suppress(OSError), record_path(record).with_suffix(_EXCLUDED).open("a") as file:
        file.write(f"{record.created_at}\n")


def is_excluded(record: CompiledModel) -> bool:
    """Whether starts have failed with this very compilation, so that it must not be fetched."""
    with suppress(OSError):
        return record.created_at in record_path(record).with_suffix(_EXCLUDED).read_text().splitlines()
    return False


@contextmanager
def incoming() -> Iterator[Path]:
    """A new folder on the file system of vLLM's caches, removed afterwards."""
    records_folder().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=records_folder()))
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left() -> None:
    """Removes folders of killed helpers, whose locks the kernel has released."""
    for folder in records_folder().glob(f"{_INCOMING}*"):
        with suppress(OSError):
            if folder.stat().st_mtime < time.time() - _LEFT_S:
                with (folder / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)


def _place(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):
        if target.name.startswith(_TRITON_GROUP):
            _readdress(path, target.parent)
        _move(path, target)


def _readdress(group: Path, folder: Path) -> None:
    """Rewrites a list of Triton for the files of this folder. With other paths, Triton compiles again."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):  # Triton ignores such a list, too
        names = read_json(group.read_bytes())["child_paths"].keys()
        group.write_text(json.dumps({"child_paths": {name: str(folder / Path(name).name) for name in names}}))


def _move(path: Path, target: Path) -> None:
    """Moves a file, also to another file system by a copy. The target is complete or missing at any time."""
    beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        shutil.move(path, beside)
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)


def compiled_folder() -> Path:
    """The folder in which vLLM keeps compiled models."""
    return vllm_root() / _COMPILED


def _key_folder(key: str) -> Path:
    return vllm_root() / AOT / key


def _further_folders(record: CompiledModel) -> set[Path]:
    """Folders that vLLM has chosen for the model, outside of the folders of keys."""
    root, aot = vllm_root(), _key_folder(".")
    paths = (root / name.removeprefix(f"{VLLM}/") for name in record.files if name.startswith(f"{VLLM}/{_COMPILED}/"))
    return {folder for path in paths for folder in path.parents if folder.parent == aot.parent and folder != aot}


def _files(folder: Path) -> Iterator[Path]:
    """The regular files in a folder and below, without temporary ones."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if not f"/{name}".endswith(_LEFT_OUT) and file.is_file() and not file.is_symlink():
                yield file


def _newest(folders: Mapping[str, Iterable[Path]], known: set[str], since_s: float) -> dict[str, Path]:
    """The newest files of these folders, up to the limit, without files of other programs."""
    roots = caches()
    found = [(name, path, path.stat()) for name, paths in folders.items() for path in paths for path in _files(path)]
    chosen, left = {}, _KERNEL_BYTES
    for name, path, status in sorted(found, key=lambda item: -item[2].st_mtime):
        full_name = f"{name}/{path.relative_to(roots[name]).as_posix()}"
        if status.st_mtime < since_s and full_name not in known:
            continue
        left -= status.st_size
        if left < 0:
            break
        chosen[full_name] = path
    return chosen
