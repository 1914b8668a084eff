"""Start method and titles of processes."""

import multiprocessing
from contextlib import suppress
from multiprocessing.context import BaseContext
from pathlib import Path

import psutil
from vllm import envs


def get_mp_context() -> BaseContext:
    return multiprocessing.get_context(envs.multiproc_method())


def set_process_title(name: str) -> None:
    Path("/proc/self/comm").write_text(f"VLLM::{name}")


def kill_process_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (*parent.children(recursive=True), parent):
            with suppress(psutil.NoSuchProcess):
                process.kill()
