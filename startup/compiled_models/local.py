"""The compiled models of this machine. Records are in vllm-cli's cache folder, and files are in vLLM's."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from base.machine.files import is_safe_name, write_whole
from envs import foreign
from envs.foreign import expand_home
from envs.registry import env
from startup.compiled_models.record import CompiledModel, FileFacts, Hardware
from startup.kernels.triton_cache import GROUP, KEPT, TEMPORARY, create_kept_folder, kept_folder, readdressed
from startup.storage.caches import cache_folder
from startup.storage.temp_folder import own_folder

_RECORDS: Final = "compiled"
_COMPILED: Final = "torch_compile_cache"
"""The folder of compiled models in vLLM's cache folder."""
AOT: Final = f"{_COMPILED}/torch_aot_compile"
"""A folder in vLLM's cache folder. It has a folder for each key, which has a folder for each rank."""
ENTRY: Final = "model"
"""The file that vLLM looks for in a rank's folder."""
VLLM: Final = "vllm"
TRITON: Final = "triton"
_BESIDE: Final = ("deep_gemm", "flashinfer_autotune_cache")
"""Folders in vLLM's cache folder with GPU kernels and their tuning, which several models use."""
_LEAST_PARTS: Final = {
    **{TRITON: 1, "flashinfer": 1, "humming": 1, "tilelang": 1, f"{VLLM}/{_COMPILED}": 3},
    **dict.fromkeys((f"{VLLM}/{name}" for name in _BESIDE), 2),
}
"""Folder -> the fewest parts of a file's path in it. A file with a shorter path would replace a folder."""
_LEARNED: Final = re.compile(
    r"(?:vllm_cli/(?:imports|starts|vllm-facts|kernels|kernel-keys|triton-key|graph-memory)/[0-9a-f]{16}\.(?:json|code)|"
    r"modelinfos/[\w.-]{1,200}\.json)",
    re.ASCII,
)
"""Matches the paths, in vLLM's cache folder, of files that starts learn. Other files are not shared."""
_MOST_LEARNED: Final = 200
_KERNEL_BYTES: Final = 1 << 30
"""The most bytes of kernels in one archive. If there are more, the newest files are taken."""
_LEFT_OUT: Final = (".lock", ".tmp", ".aside", ".log", "/cache_key_factors.json")
"""Endings of paths that are left out: temporary files, logs, and variables' values for vLLM's developers."""
_FAILED: Final = ".failed"
_EXCLUDED: Final = ".excluded"
_HARDWARE: Final = "hardware"
"""The file that names the first hardware in this folder. For this hardware, vLLM's keys do not change."""


def vllm_root() -> Path:
    """vLLM's cache folder."""
    return env.VLLM_CACHE_ROOT.get().absolute()


def caches() -> dict[str, Path]:
    """Name of a folder in a record -> the folder to which a compiler writes."""
    home = expand_home("~")
    return {
        VLLM: vllm_root(),
        TRITON: kept_folder(os.environ),
        "flashinfer": Path(foreign.text_of("FLASHINFER_WORKSPACE_BASE") or home) / ".cache/flashinfer",
        "humming": Path(foreign.text_of("HUMMING_CACHE_DIR") or f"{home}/.humming/cache"),
        "tilelang": Path(foreign.text_of("TILELANG_CACHE_DIR") or f"{home}/.tilelang/cache"),
    }


def records_folder() -> Path:
    """The folder of this machine's records."""
    return cache_folder() / _RECORDS


def claim_keys(hardware: Hardware) -> str:
    """The text to add to vLLM's keys for this hardware. Empty for the first hardware in the folder.

    Machines with different hardware may share a folder, but vLLM's key does not include the instruction sets
    and, in some releases, the GPUs.
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
    """All valid records in a folder, by default this machine's records. The newest record is first."""
    found = []
    for path in (folder or records_folder()).glob("*.json"):
        with suppress(OSError, ValueError):
            found.append(CompiledModel.from_json(path.read_bytes()))
    return sorted(found, key=lambda record: record.created_at, reverse=True)


def record_path(record: CompiledModel, folder: Path | None = None) -> Path:
    """The file of a record. Its modification time is the time of the last use of the compiled model."""
    return (folder or records_folder()) / record.file_name


def save_record(record: CompiledModel, folder: Path | None = None) -> None:
    """Writes a record. Raises OSError."""
    path = record_path(record, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, record.to_json().decode(), mode=0o600)


def is_installed(record: CompiledModel) -> bool:
    """Whether vLLM would find the compiled model for every rank in the record."""
    return all((_key_folder(record.key) / rank / ENTRY).is_file() for rank in record.ranks)


def unrecorded_keys() -> set[str]:
    """The keys of compiled models without a record."""
    known = {record.key for record in read_records()}
    return {path.parts[-3] for path in _key_folder("*").parent.glob(f"*/*/{ENTRY}")} - known


def files_of(record: CompiledModel, more: Iterable[str] = (), since_s: float = 0.0) -> dict[str, Path]:
    """The files without which vLLM would compile again, by their names in a record.

    Args:
        record: the record of the compiled model.
        more: further folders that vLLM has chosen for the model's files.
        since_s: a time in seconds since 1970. Kernels that have changed since this time belong to this start.
    """
    folders = caches()
    root = folders.pop(VLLM)
    base = _key_folder(record.key)
    others = {path.name for path in base.glob("rank_*")} - set(record.ranks)
    chosen = {path for path in _files(base) if path.relative_to(base).parts[0] not in others}
    further = [Path(folder) for folder in more if Path(folder).is_relative_to(root)]
    chosen |= {path for folder in further for path in _files(folder)}
    found = {f"{VLLM}/{path.relative_to(root).as_posix()}": path for path in sorted(chosen)}
    places = {name: [path] for name, path in folders.items()}
    places[VLLM] = [root / name for name in _BESIDE]
    return found | _newest(places, {name for each in read_records() for name in each.files}, since_s)


def install(unpacked: Path) -> list[str]:
    """Moves the files of an unpacked archive to the compilers' folders. Replaces no existing file.

    For each rank, the file that vLLM looks for is moved last, so that vLLM finds either all files or no
    model. The same holds for Triton's lists of a kernel's files. Files for any other folder are left out, and
    so are files of vllm-cli that starts do not learn.

    Returns:
        The reasons why kernels of other caches could not be written, at most one for each cache.

    Raises:
        OSError: vLLM's folder cannot be written to.
    """
    folders = caches()
    create_kept_folder(os.environ)
    problems: dict[str, str] = {}
    for path in sorted(_files(unpacked), key=_order):
        cache, *parts = path.relative_to(unpacked).parts
        least = _LEAST_PARTS.get("/".join((cache, *parts[: cache == VLLM])))
        is_learned = cache == VLLM and _LEARNED.fullmatch("/".join(parts)) is not None
        if is_learned or (least is not None and len(parts) >= least):
            try:
                _place(path, folders[cache].joinpath(*parts))
            except OSError as err:
                if cache == VLLM:
                    raise
                problems[cache] = f"kernels cannot be written to {folders[cache]}: {err.strerror or err}"
    return list(problems.values())


def _order(path: Path) -> tuple[bool, bool, Path]:
    return path.name == ENTRY, path.name.startswith(GROUP), path


def kernels_of(since_s: float, keys: Iterable[str] = (), *, of_triton: bool) -> dict[str, Path]:
    """The kernels of a start, by their names in a record.

    Args:
        since_s: the begin of the start in seconds since 1970. Younger kernels belong to it.
        keys: the folders, in Triton's cache, of further kernels that the start has used.
        of_triton: Triton's kernels, or those of all other compilers.
    """
    folders = caches()
    root, triton = folders.pop(VLLM), folders.pop(TRITON)
    if of_triton:
        used = {f"{TRITON}/{key}/{path.name}" for key in keys if is_safe_name(key) for path in _files(triton / key)}
        return _newest({TRITON: [triton]}, used, since_s)
    others = {name: [path] for name, path in folders.items()}
    others[VLLM] = [root / name for name in _BESIDE]
    return _newest(others, set(), since_s)


def learned_files() -> dict[str, Path]:
    """The newest files that starts have learned, by their names in a record."""
    root = vllm_root()
    found: list[tuple[float, str, Path]] = []
    for pattern in ("vllm_cli/*/*", "modelinfos/*"):
        for path in root.glob(pattern):
            name = path.relative_to(root).as_posix()
            with suppress(FileNotFoundError):
                if _LEARNED.fullmatch(name) and path.is_file() and not path.is_symlink():
                    found.append((path.stat().st_mtime, name, path))
    return {f"{VLLM}/{name}": path for _, name, path in sorted(found, reverse=True)[:_MOST_LEARNED]}


def has_all(names: Iterable[str]) -> bool:
    """Whether the compilers' folders have all files with these names in a record."""
    folders = caches()
    for name in names:
        cache, _, path = name.partition("/")
        if cache not in folders or not (folders[cache] / path).exists():
            return False
    return True


def remove(record: CompiledModel) -> None:
    """Removes a compiled model and its record, except files that other compiled models use."""
    base = _key_folder(record.key)
    others = [other for other in read_records() if record_path(other) != record_path(record)]
    own_further = _further_folders(record).difference(*map(_further_folders, others))
    for folder in (*(base / rank for rank in record.ranks), base, *own_further):
        aside = folder.with_name(f"{folder.name}.{os.getpid()}.aside")
        if folder != base or not any(base.glob(f"rank_*/{ENTRY}")):
            with suppress(OSError):
                folder.rename(aside)  # then vLLM finds all or nothing
                shutil.rmtree(aside, ignore_errors=True)
    for suffix in (".json", _FAILED):
        record_path(record).with_suffix(suffix).unlink(missing_ok=True)


def remove_all() -> None:
    """Removes all compiled models, even without a record, and this program's kernels. Raises OSError."""
    for folder in (compiled_folder(), records_folder(), cache_folder() / KEPT):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def num_bytes(record: CompiledModel) -> int:
    """The size of the model's files, except kernels, which several models use. 0 if the files are gone."""
    own = (facts.size for name, facts in record.files.items() if name.startswith(f"{VLLM}/{_COMPILED}/"))
    return sum(own) if is_installed(record) else 0


def num_bytes_of_all() -> int:
    """The size of all compiled models in vLLM's folder, and of files that killed helpers have left."""
    total = 0
    for folder in (compiled_folder(), *records_folder().glob("*/")):
        for path in _files(folder):
            with suppress(FileNotFoundError):  # a start may be writing
                total += path.stat().st_size
    return total


def damaged_file(record: CompiledModel) -> str | None:
    """The first file of the model that is missing or has changed since it was recorded. None if none has."""
    for name, facts in record.files.items():
        cache, _, path = name.partition("/")
        if cache != VLLM or f"/{record.key}/" not in name or name.endswith(_LEFT_OUT) or f"/{GROUP}" in name:
            continue  # other files may have been written anew
        with suppress(OSError):
            if FileFacts.of(vllm_root() / path) == facts:
                continue
        return path
    return None


def note_failure(record: CompiledModel) -> None:
    """Counts a start that has failed after it had loaded the compiled model."""
    with suppress(OSError), record_path(record).with_suffix(_FAILED).open("a") as file:
        file.write("x")


def num_failures(record: CompiledModel) -> int:
    """The number of starts in a row that have failed after they had loaded the model."""
    with suppress(OSError):
        return record_path(record).with_suffix(_FAILED).stat().st_size
    return 0


def note_use(record: CompiledModel) -> None:
    """Called when a start that has loaded the model is ready. Sets the last use and resets the failures."""
    with suppress(OSError):
        os.utime(record_path(record))
        record_path(record).with_suffix(_FAILED).unlink(missing_ok=True)


def exclude(record: CompiledModel) -> None:
    """Keeps this compilation of the model from being fetched from a location again."""
    with suppress(OSError), record_path(record).with_suffix(_EXCLUDED).open("a") as file:
        file.write(f"{record.created_at}\n")


def is_excluded(record: CompiledModel) -> bool:
    """Whether `exclude` was called for this compilation (`created_at`), because starts with it failed."""
    with suppress(OSError):
        return record.created_at in record_path(record).with_suffix(_EXCLUDED).read_text().splitlines()
    return False


@contextmanager
def incoming() -> Iterator[Path]:
    """Yields a new folder beside the records, which is removed at the end. Removes what others have left."""
    records_folder().mkdir(parents=True, exist_ok=True)
    with own_folder(str(records_folder())) as folder:
        yield folder


def _place(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):
        if target.name.startswith(GROUP):
            path.write_text(readdressed(path.read_bytes(), target.parent), encoding="utf-8")
        _move(path, target)


def _move(path: Path, target: Path) -> None:
    """Moves a file, even to another file system. The target is complete whenever it exists."""
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
    """The folders, besides those of keys, that vLLM has chosen for files of the model."""
    root, aot = vllm_root(), _key_folder(".")
    paths = (root / name.removeprefix(f"{VLLM}/") for name in record.files if name.startswith(f"{VLLM}/{_COMPILED}/"))
    return {folder for path in paths for folder in path.parents if folder.parent == aot.parent and folder != aot}


def _files(folder: Path) -> Iterator[Path]:
    """Yields the regular files below a folder, except files with endings in `_LEFT_OUT`."""
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
        for name in names:
            file = Path(path, name)
            if not f"/{name}".endswith(_LEFT_OUT) and file.is_file() and not file.is_symlink():
                yield file


def _newest(folders: Mapping[str, Iterable[Path]], known: set[str], since_s: float) -> dict[str, Path]:
    """The newest files of these folders, up to `_KERNEL_BYTES`, but only files that belong to this start."""
    roots = caches()
    found = []
    for name, paths in folders.items():
        for each in paths:
            found += [(name, path, path.stat()) for path in _files(each)]
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
