"""Makes vLLM inspect a model's class in a forked process: a new program would import all of vLLM.

vLLM inspects each model once per version, in a process of its own in order not to initialise CUDA in the
caller. In a new program that takes some seconds of the first start.
"""

import importlib
import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import LOAD_PLUGINS, MODEL_INSPECTION, RUN_IN_SUBPROCESS
from startup.imports.finder import after_import

_TIMEOUT_S: Final = 120.0


def inspect_models_in_forks() -> None:
    """From now on vLLM's model registry runs its inspections in processes forked from the forkserver."""

    def hook(registry: Any) -> None:
        in_new_program = RUN_IN_SUBPROCESS.get(registry)

        def run(function: Callable[[], Any]) -> Any:
            if multiprocessing.current_process().daemon:  # as workers are; daemons cannot start processes
                return in_new_program(function)
            try:
                return _run_forked(function)
            except (OSError, EOFError, ValueError, TypeError, AttributeError, ImportError):
                return in_new_program(function)

        RUN_IN_SUBPROCESS.replace(registry, run)

    if applies(MODEL_INSPECTION):
        after_import(RUN_IN_SUBPROCESS.module, hook)


def _run_forked(function: Callable[[], Any]) -> Any:
    import cloudpickle  # type: ignore[import-not-found,unused-ignore]

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_inspect, args=(theirs, cloudpickle.dumps(function)), name="ModelInspection", daemon=True
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise EOFError("no answer")
        is_result, answer = pickle.loads(ours.recv_bytes())
    finally:
        ours.close()
        process.join(1.0)
        if process.is_alive():
            process.kill()
    if not is_result:
        raise ValueError(answer)
    return answer


def _inspect(connection: Connection, function: bytes) -> None:
    LOAD_PLUGINS.get(importlib.import_module(LOAD_PLUGINS.module))()
    try:
        answer = (True, pickle.loads(function)())
        connection.send_bytes(pickle.dumps(answer))
    except Exception as err:  # noqa: BLE001 - the caller repeats the call in a new program, which reports the error
        connection.send_bytes(pickle.dumps((False, str(err))))
