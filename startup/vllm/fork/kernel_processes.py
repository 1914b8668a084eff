"""Compiles kernels beside the start of the engine, in processes that end when the server is ready.

The forkserver forks the first of these processes once it has imported vLLM, so they import nothing. A few
kernels take longer than all others together. For these, it forks one as soon as it has imported torch. This
one imports the modules of these kernels itself, so the forkserver's order of imports stays. All take the
processors that the engine leaves idle. The launcher ends them, and they end with the forkserver.
"""

import gc
import json
import logging
import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from base.machine.command_line import replace_command_line
from base.machine.files import write_whole
from base.machine.memory import available_bytes
from base.machine.processors import usable_count
from startup.imports.gpu_guard import common_capability
from startup.kernels.compiling import CompileJob, run_job
from startup.kernels.kernel import Kernel, unique
from startup.kernels.kernel_lists import KernelUse, kernels_for, read_keys, read_traits, save_kernels, save_keys
from startup.kernels.triton_cache import is_cached, keep, model_folders
from startup.processes import death_pipe
from startup.processes.forks import adopt
from startup.storage.caches import of_type
from startup.vllm.journal import StartRecordings, this_start
from startup.vllm.patches.early_kernels import EARLY_KERNELS, claims_folder, folders

if TYPE_CHECKING:
    from startup.vllm.start_kind import StartKind
    from startup.vllm_arguments.installed import InstalledVllm
    from startup.vllm_arguments.vllm_line import VllmLine

logger = logging.getLogger(__name__)

_MOST_PROCESSES: Final = 8
"""With more, the slowest kernel alone decides how long all take."""
_PROCESS_BYTES: Final = 1 << 30
"""A process takes 0.15 GiB. The rest is for the model, whose size is not known here."""
_SLOW_S: Final = 2.0
"""The kernels whose compilation takes as long are compiled first. Most take a tenth of a second."""
_TITLE: Final = b"vllm-cli compiles kernels\0"
_MODEL: Final = "kernels-model.json"
_POLLED_EVERY_S: Final = 0.1
_FAILED: Final = "kernels are not compiled beside the engine: %s"
_END: Final = "kernels-end"
"""The pipe by whose first byte the kernel of the system ends the processes."""


def kernel_use(vllm: "InstalledVllm", line: "VllmLine", kind: "StartKind") -> KernelUse:
    """What a start is, as far as its kernels depend on it."""
    traits = read_traits(line.model_folder, line.value("--dtype"))
    return KernelUse(vllm.version, vllm.release, kind.key, kind.flags, traits.vocab_size, traits.dtype)


class KernelProcesses:
    """The launcher's handle of the processes that compile kernels in one start."""

    def __init__(self, folder: Path) -> None:
        """Lets the forkserver of the start with this folder compile kernels.

        Raises:
            OSError: the folder cannot have a pipe, so no process will begin.
        """
        self._folder = folder
        os.mkfifo(folder / _END, 0o600)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd: int | None = os.open(folder / _END, flags)

    def tell(self, use: KernelUse) -> None:
        """Tells the processes what is known of the model once its files are there."""
        with suppress(OSError):
            write_whole(self._folder / _MODEL, json.dumps(asdict(use)))

    def end(self) -> None:
        """Ends all processes that compile kernels. No further process begins."""
        if self._fd is None:
            return
        with suppress(OSError):
            (self._folder / _END).unlink()
            os.write(self._fd, b"\0")
            os.close(self._fd)
        self._fd = None


def learn_kernels(use: KernelUse, recordings: StartRecordings) -> None:
    """Keeps the kernels that the start has used, which they are, and where they are in Triton's cache."""
    if kernels := _used_kernels(recordings):
        save_kernels(use, kernels)
    if (capability := common_capability()) is not None and recordings.kernel_keys:
        save_keys(capability, recordings.kernel_keys)
    with suppress(OSError):  # the next start compiles what it lacks
        keep(recordings.kernel_keys.values(), os.environ)


def summarize(recordings: StartRecordings) -> dict[str, Any] | None:
    """Figures about the kernels of a start so far. None if none are known."""
    if not (kernels := _used_kernels(recordings)):
        return None
    return {
        "used": len(kernels),
        "compiled_by_engine": sum(kernel.compile_s > 0 for kernel in kernels),
        "waited_s": round(sum(fields.get("waited_s", 0.0) for fields in recordings.kernels), 3),
    }


def _used_kernels(recordings: StartRecordings) -> list[Kernel]:
    """Each kernel that engines and workers have used, with the longest of their times for its compilation."""
    found = [kernel for kernel in map(_read, recordings.kernels) if kernel is not None]
    slowest_first: list[Kernel] = sorted(found, key=lambda kernel: -kernel.compile_s)
    return list(unique(slowest_first))


def _read(fields: dict[str, Any]) -> Kernel | None:
    """The kernel that a process has recorded. None if it did not write the whole record."""
    try:
        return of_type(Kernel)(fields)
    except ValueError:
        return None


def begin_compiling(use: KernelUse | None, *, only_slow: bool = False) -> None:
    """Forks the processes that compile the kernels of this start that Triton's cache lacks.

    Called in the forkserver after its imports, and with `only_slow` before most of them. Never raises an
    exception.
    """
    try:
        job = _plan(use, only_slow=only_slow) if use is not None and EARLY_KERNELS.applies else None
        if use is None or job is None:
            return
        forkserver_pid = os.getpid()
        pid = os.fork()
    except Exception as err:  # noqa: BLE001 - the engine compiles the kernels
        logger.warning(_FAILED, err)
        return
    if pid:
        adopt(pid)
        return
    try:
        _run(use, job, forkserver_pid, waits_for_model=not only_slow)
    except Exception as err:  # noqa: BLE001 - as above
        logger.warning(_FAILED, err)
    finally:
        os._exit(0)


def _plan(use: KernelUse, *, only_slow: bool = False) -> CompileJob | None:
    """What is to be compiled. None if nothing is, or if no processor is left for it."""
    capability, places, claims = common_capability(), folders(), claims_folder()
    num_processes = _num_processes()
    if capability is None or not places or claims is None or num_processes < 1:
        return None
    keys = read_keys(capability)
    missing = []
    for kernel in kernels_for(use):
        key = keys.get(kernel.id)
        function = kernel.function.rpartition(".")[2]
        if key is None or not any(is_cached(place, key, function) for place in places):
            missing.append(kernel)
    if only_slow:
        num_processes = max(num_processes - 1, 1)  # two processes import: the API server and the forkserver
        missing = [kernel for kernel in missing if kernel.compile_s >= _SLOW_S][:num_processes]
    if not missing:
        return None
    return CompileJob(
        kernels=tuple(missing),
        capability=capability,
        folder=places[0],
        others=(*places[1:], *map(str, model_folders())),
        num_processes=num_processes,
        has_library=not only_slow,
        claims_folder=str(claims),
    )


def _num_processes() -> int:
    """How many processes may compile: the engine keeps a processor, and memory for the model."""
    free_bytes = available_bytes()
    num_by_memory = free_bytes // _PROCESS_BYTES if free_bytes else _MOST_PROCESSES
    return min(usable_count() - 1, num_by_memory, _MOST_PROCESSES)


def _run(use: KernelUse, job: CompileJob, forkserver_pid: int, *, waits_for_model: bool) -> None:
    """The program of the first process."""
    assert this_start.journal is not None
    pid = os.getpid()
    _end_with(forkserver_pid)
    replace_command_line(_TITLE)
    tempfile.tempdir = os.environ["TMPDIR"] = str(this_start.journal.folder)  # is removed, however this ends
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.freeze()
    gc.enable()  # the forkserver pauses it during its imports
    _compile(job, pid)
    if use.vocab_size is None and waits_for_model:  # the model is being downloaded
        told = _wait_for(this_start.journal.folder / _MODEL)
        if (rest := _plan(told)) is not None:
            _compile(rest, pid)


def _compile(job: CompileJob, pid: int) -> None:
    assert this_start.journal is not None
    report = run_job(job, in_fork=lambda: _end_with(pid))
    this_start.journal.write(kernel_keys=report.keys)


def _wait_for(file: Path) -> KernelUse:
    """Waits until the launcher has written the file. The launcher ends this process if it never does."""
    while not file.exists():
        time.sleep(_POLLED_EVERY_S)
    return of_type(KernelUse)(json.loads(file.read_bytes()))


def _end_with(parent_pid: int) -> None:
    """Makes this process end with its parent, and as soon as the launcher says so."""
    death_pipe.follow_parent(parent_pid)
    assert this_start.journal is not None
    pipe = this_start.journal.folder / _END
    try:
        death_pipe.arm(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        os._exit(0)
    if not pipe.exists():  # the launcher has written before this process could notice
        os._exit(0)
