"""Lets vLLM look at a model's class in a forked process instead of in a new program, which would import all of vLLM.

It does so once for each model and version, in order not to initialise CUDA; that costs the first start some seconds.
"""

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from startup.vllm.import_hooks import after_import

_TIMEOUT_S: Final = 120.0


def inspect_models_in_forks() -> None:
    """From now on vLLM's model registry asks processes forked from the forkserver."""

    def hook(registry: Any) -> None:
        in_new_program = registry._run_in_subprocess

        def run(function: Callable[[], Any]) -> Any:
            if multiprocessing.current_process().daemon:  # workers are; multiprocessing starts nothing in them
                return in_new_program(function)
            try:
                return _run_forked(function)
            except (OSError, EOFError, ValueError, TypeError, AttributeError, ImportError):
                return in_new_program(function)

        registry._run_in_subprocess = run

    after_import("vllm.model_executor.models.registry", hook)


def _run_forked(function: Callable[[], Any]) -> Any:
    import cloudpickle  # type: ignore[import-not-found,unused-ignore]

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_answer, args=(theirs, cloudpickle.dumps(function)), name="ModelInspection", daemon=True
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


def _answer(connection: Connection, function: bytes) -> None:
    from vllm.plugins import load_general_plugins  # type: ignore[import-not-found,unused-ignore]

    load_general_plugins()
    try:
        answer = (True, pickle.loads(function)())
        connection.send_bytes(pickle.dumps(answer))
    except Exception as err:  # noqa: BLE001 - the caller asks a new program, whose error is vLLM's
        connection.send_bytes(pickle.dumps((False, str(err))))
