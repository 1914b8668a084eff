"""Makes vLLM inspect a model's class in a forked process, because a new program would import all of vLLM.

Each version of vLLM inspects a model once, in a separate process, so that the calling process does not
initialise CUDA. In a new program, the inspection takes some seconds of the model's first start.
"""

import functools
import importlib
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from base.json_depth import read_json
from startup.hook import Hook, Name
from startup.imports.finder import wraps
from startup.processes import forkserver

_RUN_IN_SUBPROCESS: Final = Name("vllm.model_executor.models.registry", "_run_in_subprocess", ("fn",))
_LOAD_PLUGINS: Final = Name("vllm.plugins", "load_general_plugins", ())
MODEL_INSPECTION: Final = Hook(
    "model's class",
    does="inspects the class in a fork, and imports it in the forkserver",
    without="a new program inspects it, and each worker imports it",
    gain_in=("CPU, eager, first", "stand-in, eager, first"),
    needs=(_RUN_IN_SUBPROCESS, _LOAD_PLUGINS),
    places={"api", "forkserver"},
)

_SAVE: Final = Name(_RUN_IN_SUBPROCESS.module, "_LazyRegisteredModel._save_modelinfo_to_cache", ("mi", "module_hash"))
SAVED_IN_FORK: Final = MODEL_INSPECTION.part(_SAVE, places={"api"})
_MODELS: Final = Name(_RUN_IN_SUBPROCESS.module, "ModelRegistry.models")
MODEL_MODULES: Final = MODEL_INSPECTION.part(_MODELS, Name(_MODELS.module, "_LazyRegisteredModel.module_name"))

_TIMEOUT_S: Final = 120.0
_NO_FORK: Final = (OSError, EOFError, ValueError, TypeError, AttributeError, ImportError)
"""What `_run_forked` raises if the function fails, or if no fork can run it."""


@wraps(MODEL_INSPECTION, _RUN_IN_SUBPROCESS)
def _forked_if_possible(in_new_program: Callable[..., Any]) -> Callable[..., Any]:
    def run(function: Callable[[], Any]) -> Any:
        is_worker = multiprocessing.current_process().daemon  # daemons cannot start processes
        if forkserver.is_running() and not is_worker:
            with suppress(*_NO_FORK):
                return _run_forked(function)
        return in_new_program(function)

    return run


@wraps(SAVED_IN_FORK, _SAVE)
def _saved_in_fork(save: Callable[..., None]) -> Callable[..., None]:
    """vLLM saves the result with a module that also imports torch's compiler. A fork has imported it."""

    def save_in_fork(self: Any, mi: Any, module_hash: str) -> None:
        if forkserver.is_running():
            with suppress(*_NO_FORK):
                _run_forked(functools.partial(self._save_modelinfo_to_cache, mi, module_hash))
                return
        save(self, mi, module_hash)

    return save_in_fork


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
    _LOAD_PLUGINS.get(importlib.import_module(_LOAD_PLUGINS.module))()
    try:
        answer = (True, pickle.loads(function)())
        connection.send_bytes(pickle.dumps(answer))
    except Exception as err:  # noqa: BLE001 - the caller repeats the call in a new program, which reports the error
        connection.send_bytes(pickle.dumps((False, str(err))))


def model_modules(model: Path) -> list[str]:
    """vLLM's modules for the architectures in the model's config.json. Empty for an unknown model."""
    if not MODEL_MODULES.applies:
        return []
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError):
        config = read_json((model / "config.json").read_bytes())
        known = _MODELS.get(importlib.import_module(_MODELS.module))
        return [known[name].module_name for name in config["architectures"] if name in known]
    return []


def inspect_models(modules: Sequence[str]) -> None:
    """Makes vLLM inspect the model classes in these modules, and cache the results."""
    for known in _MODELS.get(importlib.import_module(_MODELS.module)).values():
        if getattr(known, "module_name", None) in modules:
            with suppress(Exception):  # then the first start inspects it
                known.inspect_model_cls()
