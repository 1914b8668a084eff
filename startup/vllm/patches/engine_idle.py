"""Owns the changes to the loop of vLLM's EngineCore: what runs between two steps, and when no request comes.

Each client can go without the others. `when_idle` and `add_idle_work` are for work that is done once. Late
CUDA graphs use `call_between_steps`. The loop waits for requests in `_process_input_queue`, unless the
engine's attribute `process_input_queue_block` is False.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from startup.hook import Hook, Name, Text
from startup.imports.finder import wraps

CORE: Final = "vllm.v1.engine.core"
_POLL: Final = Name(CORE, "EngineCoreProc._process_input_queue", ())
BLOCK: Final = Text(CORE, r"block = self\.process_input_queue_block\n", "process_input_queue_block")
OF_LOOP: Final[tuple[Name, ...]] = tuple(
    Name(CORE, f"EngineCoreProc.{name}")
    for name in ("_process_input_queue", "_handle_client_request", "has_work", "is_running", "is_sleeping")
)
"""What `call_between_steps` and its callers use."""
WHEN_IDLE: Final = Hook(
    "work when idle",
    does="imports the compiler of grammars, and prepares Inductor, once no request has come for 3 s",
    without="the first request with a grammar waits for an import, and Inductor is prepared before readiness",
    promise="after 3 s without a request, none waits for what the start has left out",
    needs=(_POLL, BLOCK),
    places={"forkserver"},
)

_IDLE_S: Final = 3.0
"""Most first requests come sooner after readiness. They do not wait for this work."""
_MOST_WAIT_S: Final = 1.0
"""The longest wait for requests. In between, vLLM's loop runs."""

_preparations: Final[list[Callable[[Any], None]]] = []
_idle_work: Final[list[Callable[[], None]]] = []
"""The work of this process that is done once no request has come for a while."""


def when_idle(hook: Hook) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Lets the function be called once with the idle engine, if this hook applies."""

    def add(prepare: Callable[[Any], None]) -> Callable[[Any], None]:
        _preparations.append(lambda engine: prepare(engine) if hook.applies else None)
        return prepare

    return add


def does_idle_work(config: Any) -> bool:
    """Whether an engine with this configuration will do the work of `add_idle_work` in all its processes."""
    return WHEN_IDLE.applies and (config.parallel_config.distributed_executor_backend == "uni" or _has_workers(config))


def add_idle_work(work: Callable[[], None]) -> None:
    """Adds work that is done once no request has come for a while. Called in an engine or a worker.

    Under steady load, the work may never be done. Errors are ignored, so it must only speed up.
    """
    _idle_work.append(work)


def in_all_processes(engine: Any, function: Callable[..., None]) -> None:
    """Calls the function in the engine and in its workers."""
    function()
    if _has_workers(engine.vllm_config):
        engine.model_executor.collective_rpc(function)


def call_between_steps(engine: Any, step: Callable[[], bool]) -> Callable[[], None]:
    """Calls `step` before each step of the engine, and after each request that arrives.

    The loop waits for a request if `step` has returned False. Returns a function that ends the calls.
    """
    poll, handle = engine._process_input_queue, engine._handle_client_request

    def step_and_poll() -> None:
        engine.process_input_queue_block = not step()
        poll()

    def handle_and_return(*words: Any) -> None:
        handle(*words)
        engine.process_input_queue_block = False  # so that `step` decides again

    def end() -> None:
        del engine._process_input_queue, engine._handle_client_request

    engine._process_input_queue, engine._handle_client_request = step_and_poll, handle_and_return
    return end


def stays_idle(requests: Any, wait_s: float) -> bool:
    """Whether no request arrives in this queue for this time. Returns False before the end of a long time."""
    with requests.not_empty:
        if wait_s > 0 and not requests._qsize():
            requests.not_empty.wait(min(wait_s, _MOST_WAIT_S))
        return wait_s <= _MOST_WAIT_S and not requests._qsize()


@wraps(WHEN_IDLE, _POLL)
def _prepare_when_idle(poll: Callable[[Any], None]) -> Callable[[Any], None]:
    """Prepares for rare requests once no request has come for a while."""
    todo = [_do_idle_work, *_preparations]

    def prepare_and_poll(engine: Any) -> None:
        end_s = time.monotonic() + _IDLE_S
        while todo and engine.process_input_queue_block and engine.is_running() and not engine.has_work():
            if stays_idle(engine.input_queue, end_s - time.monotonic()):
                todo.pop()(engine)
            else:  # such as a question whether the engine is alive, or a part of the time has passed
                engine.process_input_queue_block = False
                poll(engine)
                engine.process_input_queue_block = True
        poll(engine)

    return prepare_and_poll


def _do_idle_work(engine: Any) -> None:
    in_all_processes(engine, _do_own_work)


def _do_own_work(_: Any = None) -> None:
    while _idle_work:
        with suppress(Exception):
            _idle_work.pop()()


def _has_workers(config: Any) -> bool:
    """Whether the engine has workers, and all are processes of this machine."""
    parallel = config.parallel_config
    return parallel.distributed_executor_backend == "mp" and getattr(parallel, "nnodes", 1) == 1
