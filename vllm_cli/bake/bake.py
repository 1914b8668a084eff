"""Starts a server once, and keeps its caches in a folder for later starts (the baked folder)."""

import json
import os
import shutil
import time
import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from envs.redaction import hide_in_arguments
from envs.registry import env
from startup.arguments.errors import InputError
from startup.arguments.screening import secrets_as_variables
from startup.compiled_models.local import AOT, ENTRY
from startup.files.prefetch.survey import FileRanges, whole_file, write_pages
from startup.hook import uses
from startup.kernels.triton_cache import KEPT
from startup.reports.timeline.history import installed_versions
from startup.settings.serve_arguments import join
from startup.storage.bytecode import check_by_content
from startup.storage.caches import BYTECODE, CACHE, COMPILED, HIDDEN, INSPECTIONS, MANIFEST, OFF, OWN, PAGES, PREFIX
from vllm_cli.bake.kernels import compile_kernels, parse_architectures
from vllm_cli.bake.start import (
    Subject,
    ask,
    bake_imports,
    has_own_bytecode,
    subject_of,
    wait_saved,
    why_no_start,
    without_addresses,
)
from vllm_cli.private_server import start_private_server
from vllm_cli.terminal import Reporter

HISTORY: Final = "start history"
IMPORTS: Final = "import file"
COMPILED_MODELS: Final = "compiled models"
KERNELS: Final = "kernels"
BYTECODES: Final = "bytecode"

_PARTS: Final = {
    HISTORY: f"{CACHE}/{OWN}/history/*.json",
    "latest starts": f"{CACHE}/{OWN}/starts/*.json",
    "package scan": f"{CACHE}/{OWN}/imports/*.json",
    IMPORTS: f"{CACHE}/{OWN}/imports/*.code",
    "model inspection": f"{CACHE}/{INSPECTIONS}/**/*",
    COMPILED_MODELS: f"{COMPILED}/[0-9]*/*",
    KERNELS: f"{COMPILED}/[kt]*/*",
    BYTECODES: f"{BYTECODE}/**/*",
    "pages to prefetch": PAGES,
}
"""Part of a baked folder -> pattern of its files."""
_NOT_KEPT: Final = (
    *("standby", "imports/*.missed", COMPILED, f"*/*{HIDDEN}", "late-captures", "plain", "failed"),
    KEPT,  # the archives have the kernels
)
"""Files of the cache that only a running server needs, or that hold only on the machine of the build."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_GAP_BYTES: Final = 128 << 10
"""Used parts with a smaller gap between them become one part, because fewer, larger reads are faster."""
_PRESENT: Final = 1 << 63
_ENTRY_BYTES: Final = 8
"""The size of an entry of /proc/PID/pagemap (proc(5)). Its highest bit says that the page is in memory."""


class Part(NamedTuple):
    """One part of a baked folder, with its size."""

    name: str
    files: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a bake, in the baked folder. A later start only checks that the record's file exists."""

    bake_id: str
    created_at: str
    engine: str
    arguments: tuple[str, ...]
    """MODEL and flags, without addresses and keys."""
    model: str
    """The model's folder. Empty if the model was not on disk."""
    packages: Mapping[str, str]
    left_out: Mapping[str, str]
    """Part that the folder lacks -> the reason."""
    format: int = 3


class BakeResult(NamedTuple):
    """The parts that `bake` has written."""

    manifest: Manifest
    parts: tuple[Part, ...]
    duration_s: float


def run_bake(
    given: Sequence[str], output: Path, *, timeout_s: float, no_start: bool, gpu_arch: str | None = None
) -> BakeResult:
    """Writes the baked folder. If the server does not start, keeps the old folder and raises StartupError.

    `given` has MODEL and flags, as after `serve`. With `no_start`, vLLM is only imported. `gpu_arch` lists
    architectures for which kernels are compiled, also without a GPU (`parse_architectures`).
    """
    architectures = parse_architectures(gpu_arch) if gpu_arch is not None else ()
    subject = subject_of(given)  # rejects arguments that `serve` rejects
    kept, secrets = secrets_as_variables(without_addresses(given))
    arguments = join(kept)
    _check_output(output)
    begin_s = time.monotonic()
    with _new_folder(output) as folder, closing(Reporter()) as reporter:
        left_out = {}
        pages: list[FileRanges] = []
        if has_own_bytecode(subject.packages):
            left_out[BYTECODES] = "the installed packages have their own"
        else:
            (folder / BYTECODE).mkdir()
        environment = _environment(folder) | secrets
        if (reason := "--no-start" if no_start else why_no_start(subject)) is not None:
            reporter.note(f"{reason}: vLLM is only imported")
            bake_imports(arguments, environment)
            left_out["a start with a request"] = reason
        else:
            pages = _start(arguments, environment, folder, timeout_s, reporter)
        for compiled in compile_kernels(arguments, architectures, str(folder / COMPILED)) if architectures else ():
            reporter.note(f"{compiled.num_kernels} kernels for {compiled.architecture} are compiled")
            left_out.update((f"a kernel for {compiled.architecture}", why) for why in compiled.problems[:1])
        _clean(folder)
        check_by_content(folder / BYTECODE)
        if subject.model is None:  # the start has downloaded the model
            subject = subject_of(arguments)
        _finish_reads(folder, pages, subject.model)
        if not any(folder.glob(_PARTS[COMPILED_MODELS])):
            left_out[COMPILED_MODELS] = "nothing was compiled"
        if reason is not None and not architectures and subject.engine == "vllm":
            left_out[KERNELS] = "give --gpu-arch to compile them without a GPU"
        manifest = _describe(arguments, subject, left_out)
        (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    parts = (
        Part(name, tuple(path for path in sorted(output.glob(pattern)) if path.is_file()))
        for name, pattern in _PARTS.items()
    )
    return BakeResult(manifest, tuple(part for part in parts if part.files), time.monotonic() - begin_s)


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, timeout_s: float, reporter: Reporter
) -> list[FileRanges]:
    """Starts the server and sends one request. Returns the parts of libraries that the server has used."""
    with start_private_server(arguments, environment) as server:
        server.wait_ready(timeout_s, reporter)
        reporter.note(f"{ask(server)} answers, saving")
        wait_saved(server, lambda: any(folder.glob(_PARTS[HISTORY])))
        if uses("import file"):
            wait_saved(server, lambda: any(folder.glob(_PARTS[IMPORTS])))
        wait_saved(server, lambda: _has_all_archives(folder))
        return used_pages(server.command.root_pid, but=(folder,))


def _has_all_archives(folder: Path) -> bool:
    keys = {path.parts[-3] for path in (folder / CACHE / AOT).glob(f"*/*/{ENTRY}")}
    return len(list(folder.glob(_PARTS[COMPILED_MODELS]))) >= len(keys)


def _finish_reads(folder: Path, pages: Iterable[FileRanges], model: Path | None) -> None:
    """Writes the list of files to read ahead: the import file (bytecode of modules), then parts of libraries.

    Leaves out files that no longer exist, because these were shared memory. Leaves out the model's files,
    because a start reads them as a whole anyway.
    """
    weights = {str(path.resolve()) for path in model.iterdir()} if model is not None else set()
    libraries = (file for file in pages if file.path not in weights and Path(file.path).exists())
    import_files = list(folder.glob(_PARTS[IMPORTS]))
    whole_imports = (whole_file(str(path)) for path in import_files)
    write_pages(str(folder / PAGES), (*whole_imports, *libraries))


def _environment(folder: Path) -> dict[str, str]:
    """Variables that make the start use only caches in the folder. An empty value unsets a variable."""
    has_bytecode = (folder / BYTECODE).is_dir()
    return {
        env.VLLM_CACHE_ROOT.name: str(folder / CACHE),
        env.VCLI_BAKED.name: OFF,
        env.VCLI_COMPILE_CACHE.name: str(folder / COMPILED),
        env.VCLI_STANDBY.name: "off",
        env.VCLI_PLAIN_VLLM.name: "",
        "PYTHONDONTWRITEBYTECODE": "",
        PREFIX: str(folder / BYTECODE) if has_bytecode else "",
    }


def _describe(arguments: Sequence[str], subject: Subject, left_out: dict[str, str]) -> Manifest:
    return Manifest(
        bake_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=subject.engine,
        arguments=tuple(hide_in_arguments(arguments)),
        model="" if subject.model is None else str(subject.model),
        packages=installed_versions(subject.packages),
        left_out=left_out,
    )


def _check_output(output: Path) -> None:
    """Raises InputError if the output is a file, or a folder with files that `bake` has not written."""
    if not output.exists() or (output / MANIFEST).is_file():
        return
    if not output.is_dir() or any(output.iterdir()):
        raise InputError(f"--output {output} exists and was not written by `vllm-cli bake`. Name another folder.")


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yields a new folder. It replaces the output after the block, or is removed after an error."""
    folder = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, mode=0o755)
    except OSError as err:
        raise InputError(f"--output {output} cannot be written: {err.strerror}.") from err
    try:
        yield folder
        _make_readable(folder)
        _replace(output, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(output: Path, folder: Path) -> None:
    aside = output.with_name(f".{output.name}.{os.getpid()}.old")
    with suppress(FileNotFoundError):
        output.rename(aside)
    folder.rename(output)
    shutil.rmtree(aside, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Lets every user read the folder and only its owner write to it, because vLLM may set other modes."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def _clean(folder: Path) -> None:
    """Removes files that are not kept, and compiled models and learned files that are here twice."""
    cache = folder / CACHE
    for learned in (folder / COMPILED).glob("starts-*"):
        shutil.rmtree(learned)
    others = [path for path in cache.glob("*") if path.name not in (OWN, INSPECTIONS)]
    not_kept = [path for pattern in _NOT_KEPT for path in (cache / OWN).glob(pattern)]
    for path in (*others, *not_kept):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Mapping(NamedTuple):
    begin: int
    end: int
    offset: int
    path: str


def used_pages(root_pid: int, *, but: Iterable[Path] = ()) -> list[FileRanges]:
    """Returns the used parts of the files that a process and its descendants have mapped.

    The files are in order of mapping. `but`: files and folders to leave out.
    """
    left_out = tuple(f"{path}/" for path in but)
    found: dict[str, set[int]] = {}
    for process in (psutil.Process(root_pid), *psutil.Process(root_pid).children(recursive=True)):
        with suppress(OSError, psutil.Error):
            for mapping in _mappings(process.pid):
                if not f"{mapping.path}/".startswith(left_out):
                    found.setdefault(mapping.path, set()).update(_used(process.pid, mapping))
    return [_ranges(path, blocks) for path, blocks in found.items() if blocks]


def _mappings(pid: int) -> list[_Mapping]:
    """The mappings of regular files in the order of mapping, which goes from high to low addresses."""
    mappings = []
    with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123
        for line in maps:
            arguments = line.rstrip("\n").split(None, 5)
            if len(arguments) == 6 and arguments[5].startswith("/") and os.path.isfile(arguments[5]):  # noqa: PTH113
                begin, end = (int(argument, 16) for argument in arguments[0].split("-"))
                mappings.append(_Mapping(begin, end, int(arguments[2], 16), arguments[5]))
    return sorted(mappings, reverse=True)


def _used(pid: int, mapping: _Mapping) -> Iterator[int]:
    """Yields the numbers of the file's pages that the process has used."""
    num_pages = (mapping.end - mapping.begin) // _PAGE_BYTES
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:  # noqa: PTH123
        entries = array(
            "Q", os.pread(file.fileno(), num_pages * _ENTRY_BYTES, mapping.begin // _PAGE_BYTES * _ENTRY_BYTES)
        )
    first = mapping.offset // _PAGE_BYTES
    return (first + number for number, entry in enumerate(entries) if entry & _PRESENT)


def _ranges(path: str, pages: Iterable[int]) -> FileRanges:
    size = os.path.getsize(path)  # noqa: PTH202
    ranges: list[tuple[int, int]] = []
    for page in sorted(pages):
        offset = page * _PAGE_BYTES
        if offset >= size:  # this memory is behind the end of the file
            break
        end = min(offset + _PAGE_BYTES, size)
        if ranges and offset - sum(ranges[-1]) <= _GAP_BYTES:
            ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
        else:
            ranges.append((offset, end - offset))
    return FileRanges(path, size, tuple(ranges))
