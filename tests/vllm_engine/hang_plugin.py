"""A plugin of vLLM. If a file exists, a worker waits, computes or loops for ever in its next step.

HANG_FILE is the path of the file. The file has `loop`, or `sleep` or `compute` with a number of seconds. The
first worker that reads the file removes it.
"""

import functools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "HANG_FILE"


def install() -> None:
    """vLLM calls this function in each of its processes."""
    from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

    WorkerWrapperBase.execute_model = _hanging(WorkerWrapperBase.execute_model)
    WorkerBase.nap = lambda self, seconds: time.sleep(float(seconds))  # for `/collective_rpc`


def _hanging(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_model(*args: Any, **kwargs: Any) -> Any:
        file = Path(os.environ[VARIABLE])
        if file.exists():
            how, _, seconds = file.read_text().partition(" ")
            file.unlink(missing_ok=True)
            _hang(how, float(seconds or 0))
        return execute(*args, **kwargs)

    return execute_model


def _hang(how: str, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    if how == "loop":
        re.match(r"(a*)*b", "a" * 60)  # in C, with Python's lock, for longer than the universe exists
    elif how == "sleep":
        time.sleep(seconds)
    while time.monotonic() < end_s:
        sum(range(100_000))
