"""Forks the processes that vLLM starts with `spawn` from a forkserver that has imported vLLM already.

vLLM's CPU platform requires `spawn`, and vLLM rejects `forkserver` as a setting. So vLLM keeps the setting
`spawn`, but its processes are forks instead of new programs (`startup.processes.forkserver`). A fork
gets the state of the thread that requested it (`startup.processes.state`), ends with its process
(`startup.processes.death_pipe`), and survives the end of the forkserver. Children of these forks are
forked from the same forkserver.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import process
from typing import TYPE_CHECKING, Any, Final

from envs import foreign
from envs.environment import changes, overlaid, snapshot
from envs.registry import OWN_PREFIX, env
from startup.hook import Hook, Name, Text
from startup.processes.death_pipe import arm
from startup.processes.forkserver import NEEDS, ForkedPopen, ensure_forkserver, install
from startup.processes.new_program import discard_dormant, without_main_module
from startup.processes.state import inherit, refresh_libraries
from startup.reports.crash.output_record import ProcessEnds
from startup.vllm.fork.openmp_state import update_openmp
from startup.vllm.fork.recorded_ends import record_spawns
from startup.vllm.journal import API_SERVER, FORKSERVER, this_start
from startup.vllm.patches.temp_files import variables_of_new_programs
from startup.vllm.serving.server_context import ChildLink
from startup.vllm.serving.serving_events import report_serving

if TYPE_CHECKING:
    from startup.vllm.fork.preload_plan import PreloadPlan
    from startup.vllm_arguments.installed import InstalledVllm

FORKS: Final = Hook(
    "forks",
    does="forks engines, workers and API servers where vLLM uses `spawn`",
    without="every process imports vLLM itself",
    needs=(
        *NEEDS,
        Text("vllm.utils.system_utils", r"def get_mp_context\(.*?multiprocessing\.get_context\(", "get_mp_context"),
        Text("vllm.envs", r'"VLLM_WORKER_MULTIPROC_METHOD"', "VLLM_WORKER_MULTIPROC_METHOD"),
        Text("vllm.v1.engine.utils", r"get_mp_context\(\)", "a start of engines with get_mp_context"),
        Name("multiprocessing.popen_fork", "Popen._send_signal", ("sig",)),
    ),
    is_essential=True,
)

_CPU: Final = "vllm.platforms.cpu"
CHILD_VARIABLES: Final = Hook(
    "variables of children",
    does="starts the forkserver with vLLM's variables for workers (OpenMP, allocator, Inductor)",
    without="workers on CPU are slower, or are not forked",
    promise="workers on CPU are as fast as vLLM's",
    needs=(
        Text(_CPU, r'os\.environ\["LD_PRELOAD"\]', "LD_PRELOAD"),
        Text(_CPU, r'os\.environ\["TORCHINDUCTOR_COMPILE_THREADS"\]', "TORCHINDUCTOR_COMPILE_THREADS"),
    ),
)

READ_AT_EXEC: Final = ("LD_PRELOAD", "PYTHONHASHSEED", "PYTHONMALLOC", "MALLOC_ARENA_MAX")
"""Variables that take effect only when a program starts, so that a fork cannot apply them."""

_ENGINE: Final = "EngineCore"
PRELOAD_MODULE: Final = "startup.vllm.fork.preload"
_LD_PRELOAD: Final = "LD_PRELOAD"


class _ThisProcess:
    """The pipes of this process."""

    pipes: ChildLink | None = None
    """Connects a process that serves the port to the launcher. None in the forkserver itself."""
    own_pipe: tuple[int, int, int] | None = None
    """The owner's pid, the read end and the write end. The owner's children end when the write end closes."""


_this: Final = _ThisProcess()


def start_forkserver(plan: "PreloadPlan", environment: Mapping[str, str], pipes: ChildLink) -> None:
    """Starts the forkserver, and returns before its imports are done. The first fork waits for the imports.

    `environment` has the variables that the forkserver gets in addition to the variables of this process.
    """
    with overlaid({**environment, env.VCLI_PRELOAD_PLAN.name: str(plan.write())}):
        at_exec = snapshot()
        discard_dormant(name for name in (*environment, *READ_AT_EXEC) if not name.startswith(OWN_PREFIX))
        ensure_forkserver(PRELOAD_MODULE)
    redirect_spawn(at_exec, pipes)


def forkserver_environment(vllm: "InstalledVllm") -> dict[str, str]:
    """Returns variables that vLLM will set for its children and that libraries read when they are loaded.

    Without PYTORCH_NVML_BASED_CUDA_CHECK, torch's check for a GPU may initialise CUDA. Forks could then not
    use it.
    """
    environment = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if vllm.is_for_cpu and CHILD_VARIABLES.applies:
        environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
        environment |= _preloaded_libraries(vllm)
    return environment


def _preloaded_libraries(vllm: "InstalledVllm") -> dict[str, str]:
    """LD_PRELOAD with torch's OpenMP and vLLM's allocator, in the order that vLLM's CPU platform uses."""
    given = foreign.text_of(_LD_PRELOAD)
    arguments = [given] if given else []
    if not any(name in given for name in ("libomp", "libgomp", "libiomp")):
        site = vllm.folder.parent
        found = [path for folder in ("torch.libs", "torch/lib") for path in (site / folder).glob("libgomp*.so*")]
        arguments += [str(path) for path in found[:1]]
    if "libtcmalloc" not in given:
        patterns = ("libtcmalloc_minimal*.so*", "libtcmalloc.so*")
        found = [path for pattern in patterns for path in (vllm.folder / "libs").glob(pattern)]
        arguments = [str(path) for path in found[:1]] + arguments
    return {_LD_PRELOAD: ":".join(arguments)} if arguments else {}


def redirect_spawn(environment: Mapping[str, str], pipes: ChildLink | None = None) -> None:
    """Makes `spawn` request forks from the forkserver, in this process and in its forks.

    `environment` is the environment with which the forkserver started. Each child writes its own journal.
    """
    assert this_start.record is not None
    _this.pipes = pipes
    this_start.environment = environment
    record_spawns(this_start.record)
    install(_ForkedPopen, _begin, ProcessEnds(this_start.record, are_forks=True).add)


class _ForkedPopen(ForkedPopen):
    def __init__(self, process_obj: process.BaseProcess) -> None:
        assert this_start.journal is not None
        start = this_start.journal.span(f"start_{process_obj.name}", waits_for=FORKSERVER)  # all its imports
        with without_main_module(), start:
            super().__init__(process_obj)

    def why_not_forked(self) -> str | None:
        if (reason := super().why_not_forked()) is not None:
            return reason
        for name in READ_AT_EXEC:
            wanted = foreign.text_of(name)
            if not _is_applied(name, wanted, this_start.environment.get(name, "")):
                return f"{name} is {wanted!r}, which only a new program can apply"
        return None

    def may_be_new_program(self) -> bool:
        """Whether a new program may replace the fork. False if the process takes the port through pipes."""
        return _this.pipes is None or not self.name.startswith(API_SERVER)

    def start_program(self, path: Any, arguments: Any, fds: Any) -> int:
        with overlaid(variables_of_new_programs()):
            return super().start_program(path, arguments, fds)

    def extras(self) -> tuple[Sequence[str], Sequence[int]]:
        blocked = sum(1 << (number - 1) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        texts = [self.name, str(os.getpid()), str(threading.get_native_id()), str(blocked)]
        if _this.pipes is None:
            return texts, (_death_pipe(),)
        *fds, timeout_s = _this.pipes
        return (*texts, str(timeout_s)), (_death_pipe(), *fds)

    def _send_signal(self, sig: int) -> None:
        if (err := sys.exception()) is not None and this_start.record is not None:
            this_start.record.add_reason(err, process.current_process().name)
        super()._send_signal(sig)  # type: ignore[misc]


def _is_applied(name: str, wanted: str, at_exec: str) -> bool:
    """Whether a fork behaves as if its program had started with `wanted` instead of `at_exec`."""
    if name == "LD_PRELOAD":  # further libraries do no harm
        return set(wanted.split(":")) <= {"", *at_exec.split(":")}
    return wanted in ("", at_exec)


def _death_pipe() -> int:
    """The read end of this process's death pipe. The kernel closes the write end when this process ends."""
    if _this.own_pipe is None or _this.own_pipe[0] != os.getpid():
        _this.own_pipe = (os.getpid(), *os.pipe())
        os.register_at_fork(after_in_child=_close_inherited_pipe)
    return _this.own_pipe[1]


def _close_inherited_pipe() -> None:
    """Closes a fork's copy of its parent's pipe. The copy would keep the parent's other children running."""
    if _this.own_pipe is not None and _this.own_pipe[0] != os.getpid():
        for fd in _this.own_pipe[1:]:
            with suppress(OSError):
                os.close(fd)
        _this.own_pipe = None


def _begin(texts: Sequence[str], fds: Sequence[int]) -> None:
    """Sets a fork's state before its process object is unpickled, because unpickling may read variables."""
    begin_ns = time.monotonic_ns()
    journal, record = this_start.journal, this_start.record
    assert journal is not None
    assert record is not None
    watched, *pipes = fds
    arm(watched)
    os.close(watched)
    name, pid, thread_id, blocked, *timeouts_s = texts
    process.current_process().name = name
    changed = changes(this_start.environment, snapshot())
    inherit(int(thread_id), int(blocked))
    refresh_libraries(changed)
    update_openmp()
    record.begin_process(name, parent_pid=int(pid))
    if pipes:
        _this.pipes = ChildLink(*pipes, *map(float, timeouts_s))
        report_serving(_this.pipes, record)
    journal.mark_loaded_modules()
    journal.add_span("take_over", begin_ns, time.monotonic_ns())
