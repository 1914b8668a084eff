"""Saves a model that vLLM has compiled in a fork of the engine or worker, while this goes on with the start.

vLLM saves the model (seconds in Python's pickle) before it runs it for the first time. The fork has a copy of
all objects at this moment, so the file is the same. It is complete before the server is ready. Workers on CPU
have another warm-up, so they save as in plain vLLM.

The fork uses no GPU, because the driver does not work in it: vLLM saves no data of tensors. No end of the
fork harms the server. If the fork fails, hangs, or is killed, the process saves the model after the warm-up.
If memory runs out, the kernel ends the fork first. A start that fails waits for its forks, so that the next
one need not compile again.
"""

import functools
import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.machine.cgroups import read_lines
from base.machine.command_line import replace_command_line
from base.machine.file_stamps import FileStamp, read_stamp
from base.machine.memory import available_bytes
from base.machine.processors import usable_count
from startup.hook import Hook, Name, Text
from startup.imports.finder import wraps
from startup.processes import death_pipe
from startup.vllm.patches.graphs.early_graphs import PLATFORM

_DECORATORS: Final = "vllm.compilation.decorators"
_DECORATE: Final = Name(_DECORATORS, "_support_torch_compile", ("cls", "dynamic_arg_dims"))
_SAVE: Final = "save_aot_compiled_function"
_WARM_UP: Final = Name("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model", ())
_INITIALIZE: Final = Name("vllm.v1.engine.core", "EngineCore._initialize_kv_caches", ("vllm_config",))
SAVED_MODELS: Final = Hook(
    "saved models",
    does="saves a compiled model in a fork of the worker, during the rest of the warm-up",
    without="a start that compiles waits until its model is saved",
    promise="the file is vLLM's, and complete before the server is ready",
    needs=(
        _DECORATE,
        _WARM_UP,
        PLATFORM,
        Text(
            _DECORATORS,
            r"self\.aot_compiled_fn = self\.aot_compile\(\*args, \*\*kwargs\).*?"
            r"self\.save_aot_compiled_function\(\)\n.*?"
            r'tmp_file = f"\{self\._aot_compilation_path\}\.\{os\.getpid\(\)\}\.tmp"\n.*?'
            r"os\.replace\(tmp_file, self\._aot_compilation_path\)\n.*?"
            r"cls\.save_aot_compiled_function = save_aot_compiled_function\n",
            "the known steps of saving",
        ),
    ),
    since=(0, 33),
    places={"forkserver", "template"},
)
FAILED_STARTS: Final = SAVED_MODELS.part(_INITIALIZE, since=(0, 33))

_TITLE: Final = b"vllm-cli saves the compiled model\0"
_LEAST_BYTES: Final = 1 << 30
"""Free memory for each rank's fork, which copies the pages of the objects that it saves, at most 0.5 GiB."""
_LONGEST_S, _LONGEST_IDLE_S = 60.0, 3.0
"""How long the end of the warm-up waits for a fork, which takes 4 s on an idle core. The second time is for a
fork that computes nothing, because another thread held a lock when it began."""
_POLLED_EVERY_S: Final = 0.005
_LONGEST_CALL_S: Final = 90.0
"""The longest wait of a start that fails: for a fork, and then for a rank that saves its model itself."""
_LOWEST_FD: Final = 3
_FIRST_TO_KILL: Final = "1000"
"""The highest value of `oom_score_adj`."""


class _Saving(NamedTuple):
    """A fork that saves a model."""

    pid: int
    model: Any
    save: Callable[[Any], None]
    before: FileStamp
    """The file before the fork."""


class _State:
    running: Final[list[_Saving]] = []
    is_warm = False
    """Whether the warm-up has ended. vLLM then saves further models itself."""


@wraps(SAVED_MODELS, _DECORATE)
def _save_beside(decorate: Callable[..., Any]) -> Callable[..., Any]:
    def decorate_and_save_beside(cls: Any, *args: Any, **kwargs: Any) -> Any:
        decorated = decorate(cls, *args, **kwargs)
        save = vars(decorated).get(_SAVE)
        if save is not None and not hasattr(save, "__wrapped__"):  # vLLM lets a class be decorated twice
            setattr(decorated, _SAVE, functools.wraps(save)(lambda model: _begin(model, save)))
        return decorated

    return decorate_and_save_beside


@wraps(SAVED_MODELS, _WARM_UP)
def _end_with_warm_up(warm_up: Callable[..., Any]) -> Callable[..., Any]:
    def warm_up_and_end(worker: Any) -> Any:
        result = warm_up(worker)
        _State.is_warm = True
        _end_all()
        return result

    return warm_up_and_end


@wraps(FAILED_STARTS, _INITIALIZE)
def _end_with_failure(initialize: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore finds most errors, such as too little memory, between compiling and the warm-up."""

    def initialize_or_end(engine: Any, vllm_config: Any) -> Any:
        try:
            return initialize(engine, vllm_config)
        except Exception as err:
            # An error of a worker is no ValueError here. Other ranks may then wait for that worker for ever.
            if isinstance(err, ValueError) or vllm_config.parallel_config.world_size == 1:
                with suppress(Exception):  # a worker may have ended
                    engine.model_executor.collective_rpc(_end_all, timeout=_LONGEST_CALL_S)
            raise

    return initialize_or_end


def _begin(model: Any, save: Callable[[Any], None]) -> None:
    """Saves the model in a fork, but here on other platforms, or if no processor or memory is free."""
    if _State.is_warm or not PLATFORM.get().is_cuda() or usable_count() < 2 or not _has_memory(model):
        save(model)
        return
    before, own_pid = _stamp(model), os.getpid()
    try:
        pid = os.fork()
    except OSError:
        save(model)
        return
    if pid == 0:
        _run(lambda: save(model), own_pid)
    _State.running.append(_Saving(pid, model, save, before))


def _has_memory(model: Any) -> bool:
    """Whether there is memory for the forks of all ranks, which may be on this node."""
    return not 0 < available_bytes() < _LEAST_BYTES * model.vllm_config.parallel_config.world_size_across_dp


def _run(save: Callable[[], None], parent_pid: int) -> None:
    """The fork. It ends with its process, whose descriptors it does not keep open, and frees no tensor."""
    try:
        death_pipe.follow_parent(parent_pid)
        for number in (signal.SIGINT, signal.SIGTERM):  # the copied handlers would end an engine
            signal.signal(number, signal.SIG_DFL)
        gc.disable()
        with suppress(OSError):  # without /proc
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_KILL)
        _leave_descriptors()
        replace_command_line(_TITLE)
        save()
    finally:
        os._exit(0)


def _leave_descriptors() -> None:
    """Closes all files, but leaves their numbers taken, because objects of the copied process have them."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) >= _LOWEST_FD:
            with suppress(OSError):
                os.dup2(null, int(name), inheritable=False)


def _end_all(_worker: Any = None) -> None:
    while _State.running:
        _end(_State.running.pop())


def _end(saving: _Saving) -> None:
    """Waits for the fork while it works. If it has not saved the model, saves the model here."""
    changed_s = begin_s = time.monotonic()
    computed = ""
    with suppress(ChildProcessError):
        while os.waitpid(saving.pid, os.WNOHANG) == (0, 0):
            now_s = time.monotonic()
            if (newest := _computed(saving.pid)) != computed:
                changed_s, computed = now_s, newest
            if now_s - changed_s > _LONGEST_IDLE_S or now_s - begin_s > _LONGEST_S:
                os.kill(saving.pid, signal.SIGKILL)
                os.waitpid(saving.pid, 0)
                break
            time.sleep(_POLLED_EVERY_S)
    if _stamp(saving.model) == saving.before:
        with suppress(OSError):
            Path(f"{saving.model._aot_compilation_path}.{saving.pid}.tmp").unlink(missing_ok=True)
        saving.save(saving.model)


def _computed(pid: int) -> str:
    """The processor time of a process with one thread, as the kernel writes it."""
    return " ".join(read_lines(Path(f"/proc/{pid}/schedstat"))).partition(" ")[0]


def _stamp(model: Any) -> FileStamp:
    return read_stamp(str(getattr(model, "_aot_compilation_path", "") or os.devnull))
