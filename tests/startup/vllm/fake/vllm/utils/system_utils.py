"""Start method and titles of processes."""

import multiprocessing
import os
from multiprocessing.context import BaseContext
from pathlib import Path

from vllm import envs

IMPORTED_IN = os.getpid()


def get_mp_context() -> BaseContext:
    return multiprocessing.get_context(envs.multiproc_method())


def set_process_title(name: str) -> None:
    Path("/proc/self/comm").write_text(f"VLLM::{name}")
