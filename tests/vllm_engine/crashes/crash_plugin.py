"""A plugin of vLLM that makes one of vLLM's processes fail at a place that CRASH_AT names.

`PROCESS MODULE:CLASS.FUNCTION HOW`, such as `EngineCore vllm.v1.engine.core:EngineCore.step SIGKILL`.
HOW is a signal, `exit CODE`, or an exception as Python writes it: `ValueError: a text`.
"""

import functools
import importlib
import multiprocessing
import os
import signal
from typing import Any, Final, NoReturn

VARIABLE: Final = "CRASH_AT"


def install() -> None:
    """vLLM calls this function in each of its processes."""
    process, place, how = os.environ[VARIABLE].split(" ", 2)
    if multiprocessing.current_process().name.startswith(process):
        module, _, path = place.partition(":")
        owner = importlib.import_module(module)
        *classes, name = path.split(".")
        for part in classes:
            owner = getattr(owner, part)
        setattr(owner, name, _crashing(getattr(owner, name), how))


def _crashing(function: Any, how: str) -> Any:
    @functools.wraps(function)
    def crash(*args: Any, **kwargs: Any) -> NoReturn:
        if how.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, how))
        elif how.startswith("exit "):
            os._exit(int(how.removeprefix("exit ")))
        name, _, text = how.partition(": ")
        module, _, kind = name.rpartition(".")
        raise getattr(importlib.import_module(module or "builtins"), kind)(text)

    # Tracebacks show the name of the code.
    crash.__code__ = crash.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
    return crash
