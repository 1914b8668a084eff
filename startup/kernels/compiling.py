"""Compiles a list of Triton's kernels into Triton's cache, in several processes. Needs no GPU.

Triton finds a kernel by a key of its source, its types, its options, the architecture and the versions. This
module lets Triton compute the key and compile the kernel, so both are those of the engine. Processes that
compile for the same start divide the kernels by claims (`claims.py`).
"""

import inspect
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.machine.gpu_driver import initialized_driver
from startup.hook import Name
from startup.kernels.claims import Claims
from startup.kernels.kernel import Kernel, UnknownKernelError, options_of, source_of
from startup.kernels.triton_cache import CACHE_DIR, bring, is_cached
from startup.processes.helper import Helper, HelperEndedError, Send

logger = logging.getLogger(__name__)

_COMPILER: Final = "triton.compiler.compiler"
COMPILE: Final = Name(_COMPILER, "compile", ("src", "target", "options"))
CACHE_KEY: Final = Name(_COMPILER, "get_cache_key", ("src", "backend", "backend_options", "env_vars"))
READ_VARIABLES: Final = Name(_COMPILER, "get_cache_invalidating_env_vars", ())
"""Returns the variables that are part of a key."""
FOLDER_NAME: Final = Name("triton.runtime.cache", "_base32", ("key",))
NEEDS: Final = (COMPILE, CACHE_KEY, READ_VARIABLES, FOLDER_NAME)
"""What this module calls of Triton."""

_WARP_SIZE: Final = 32
_OUTPUT: Final = (1, 2)
_NICE: Final = 2
"""More would make an engine that waits for a kernel wait longer on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """Kernels to compile."""

    kernels: tuple[Kernel, ...]
    """In the order of their importance. Kernels that cannot be compiled here are skipped."""
    capability: tuple[int, int]
    """The compute capability of the GPU, such as (9, 0)."""
    folder: str
    """Triton's cache, where the kernels go."""
    others: tuple[str, ...] = ()
    """Further caches. Their kernels are copied to `folder` instead of compiled."""
    num_processes: int = 1
    """The most processes that compile at once, including the one that runs the job."""
    has_library: bool = True
    """Whether the C library with which Triton launches kernels is compiled, too."""
    claims_folder: str = ""
    """A folder that all processes of a start share. Empty: a temporary folder."""


@dataclass
class CompileReport:
    """The result of a job."""

    keys: dict[str, str] = field(default_factory=dict)
    """Id of each kernel that the cache has now -> its folder in Triton's cache."""
    num_compiled: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    """Id of each kernel that was not compiled -> the reason."""
    took_s: float = 0.0


def compile_in_new_program(job: CompileJob, name: str = "kernels") -> CompileReport:
    """Runs the job in a new program, which imports the kernels' modules, with or without a GPU.

    Raises:
        OSError: the program cannot be started.
        HelperEndedError: the program has ended without a report.
    """
    helper = Helper(name, f"{__name__}:run_without_gpu", job)
    try:
        report = helper.receive()
    finally:
        helper.close()
    if not isinstance(report, CompileReport):
        raise HelperEndedError(f"the program has reported {report!r}")
    return report


def run_without_gpu(job: CompileJob, send: Send) -> None:
    """The program of `compile_in_new_program`."""
    from triton.backends import backends  # noqa: PLC0415 - not for those who only create jobs

    driver = backends["nvidia"].driver
    driver.is_active = staticmethod(lambda: True)  # otherwise vLLM replaces Triton, and has no kernels
    send(run_job(job))


class _Task(NamedTuple):
    """A kernel that the cache lacks, as Triton compiles it."""

    kernel: Kernel
    key: str
    source: Any


def run_job(job: CompileJob, in_fork: Callable[[], None] = lambda: None) -> CompileReport:
    """Runs the job in this process and in forks of it. Call it while this process has only its main thread.

    A process that has initialized a GPU's driver is not forked.

    Lowers the priority of this process, and sets its TRITON_CACHE_DIR.

    Args:
        job: what to compile.
        in_fork: called first in each fork.
    """
    begin_s = time.monotonic()
    os.environ[CACHE_DIR] = job.folder
    with suppress(OSError):
        os.nice(_NICE)
    report = CompileReport()
    tasks = _missing(job, report)
    with nullcontext(job.claims_folder) if job.claims_folder else tempfile.TemporaryDirectory() as folder:
        claims = Claims(Path(folder))
        target = target_of(job.capability)
        may_fork = initialized_driver() is None  # the imports of kernels may have initialized it
        num_forks = min(job.num_processes, len(tasks)) - 1 if may_fork else 0
        pids = [_fork(tasks, claims, target, in_fork) for _ in range(num_forks)]
        if job.has_library:
            _build_driver()
        _compile_unclaimed(tasks, claims, target)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for task in tasks:
            if is_cached(job.folder, task.key, task.source.name):
                report.keys[task.kernel.id] = task.key
                report.num_compiled += 1
            else:
                report.problems[task.kernel.id] = claims.problem(task.key) or "its compilation did not end"
    report.took_s = time.monotonic() - begin_s
    return report


def target_of(capability: tuple[int, int]) -> Any:
    """Triton's target for an NVIDIA GPU of this compute capability."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415 - as above

    major, minor = capability
    return GPUTarget("cuda", major * 10 + minor, _WARP_SIZE)


def key_of(source: Any, target: Any, options: Any) -> str:
    """The name of the folder in Triton's cache where Triton keeps what it compiles from this source."""
    from hashlib import sha256  # noqa: PLC0415 - as above

    from triton.compiler import make_backend  # noqa: PLC0415 - as above

    backend = make_backend(target)
    parsed = backend.parse_options(dict(options or {}))
    key = CACHE_KEY.get()(source, backend, parsed, env_vars=READ_VARIABLES.get()())
    return str(FOLDER_NAME.get()(sha256(key.encode()).hexdigest()))


def default_options(target: Any) -> dict[str, Any]:
    """The options with which Triton compiles for this target if a kernel names none."""
    from triton.compiler import make_backend  # noqa: PLC0415 - as above

    return dict(vars(make_backend(target).parse_options({})))


def _missing(job: CompileJob, report: CompileReport) -> list[_Task]:
    """The kernels that all caches lack, in the job's order. Notes all others in the report."""
    target = target_of(job.capability)
    tasks: dict[str, _Task] = {}
    for kernel in job.kernels:
        try:
            source = source_of(kernel)
            key = key_of(source, target, options_of(kernel))
        except Exception as err:  # noqa: BLE001 - whatever Triton raises for a description that fits no longer
            report.problems[kernel.id] = str(err) if isinstance(err, UnknownKernelError) else repr(err)
            continue
        if not is_cached(job.folder, key, source.name):
            with suppress(OSError):  # it is compiled
                bring(key, job.others, job.folder)
        if is_cached(job.folder, key, source.name):
            report.keys[kernel.id] = key
        else:
            tasks.setdefault(key, _Task(kernel, key, source))
    return list(tasks.values())


def _build_driver() -> None:
    """Compiles the C library with which Triton launches kernels (0.8 s), unless the cache has it."""
    import triton.backends.nvidia.driver as driver  # noqa: PLC0415 - as above
    from triton.runtime import build  # noqa: PLC0415 - as above

    try:
        build.compile_so_from_file(
            src_path=os.path.join(driver.dirname, "driver.c"),  # noqa: PTH118 - the key contains no path
            name="cuda_utils",
            library_dirs=driver.library_dirs(),
            include_dirs=driver.include_dirs,
            libraries=driver.libraries,
        )
    except Exception as err:  # noqa: BLE001 - another version of Triton, or no compiler: the engine reports it
        logger.debug("Triton's library for launches was not compiled beside the engine: %r", err)


def _fork(tasks: Sequence[_Task], claims: Claims, target: Any, in_fork: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            in_fork()
            _compile_unclaimed(tasks, claims, target)
        finally:
            os._exit(0)
    return pid


def _compile_unclaimed(tasks: Iterable[_Task], claims: Claims, target: Any) -> None:
    """Compiles the kernels that no other process has claimed."""
    compile_now = inspect.unwrap(COMPILE.get(sys.modules[_COMPILER]))
    for task in tasks:
        with claims.try_claim(task.key) as is_claimed:
            if not is_claimed:
                continue
            try:
                with _silent():
                    compile_now(task.source, target=target, options=options_of(task.kernel))
            except Exception as err:  # noqa: BLE001 - the engine compiles it, and gets the error if it is one
                claims.note_problem(task.key, repr(err))


@contextmanager
def _silent() -> Iterator[None]:
    """Drops what Triton and its programs print. Errors are exceptions as well, and the start goes on."""
    kept = [os.dup(fd) for fd in _OUTPUT]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in _OUTPUT:
            os.dup2(null, fd)
        yield
    finally:
        for fd, original in zip(_OUTPUT, kept, strict=True):
            os.dup2(original, fd)
        for fd in (null, *kept):
            os.close(fd)
