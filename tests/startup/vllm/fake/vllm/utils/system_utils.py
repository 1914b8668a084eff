"""Start method and titles of processes."""

import multiprocessing
from multiprocessing.context import BaseContext
from pathlib import Path

from vllm import envs


def get_mp_context() -> BaseContext:
    return multiprocessing.get_context(envs.multiproc_method())


def set_process_title(name: str) -> None:
    Path("/proc/self/comm").write_text(f"VLLM::{name}")
