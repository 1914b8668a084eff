"""Runs a router on the stand-in for the GPU, and other programs on the same GPUs."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, gpu_variables
from tests.support.http_client import Answer
from tests.support.peer_vllm import ROOT
from tests.support.ports import free_port
from tests.support.program import Server

_TOTAL_BYTES: Final = 85520809984
"""The memory of each GPU."""
_START_S: Final = 600.0
_SAMPLES: Final = """
import select, sys
from base.machine.nvml import read_gpus
count = peak = 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    used = [gpu.total_bytes - gpu.free_bytes for gpu in read_gpus().gpus]
    count, peak = count + 1, max(peak, *used)
print(count, peak)
"""
"""Reads NVML until the standard input ends. Prints the number of readings, and the peak of a GPU in bytes."""
_TAKES: Final = """
import ctypes, sys
cuda = ctypes.CDLL("libcudart.so.13")
free, total, memory = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
cuda.cudaSetDevice({device})
sys.stdin.readline()
cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
print(cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(free.value - (32 << 20))), flush=True)
sys.stdin.read()
"""


def take_memory(device: int) -> str:
    """A script that takes all memory of a device except 32 MiB when it reads a line. Then it prints 0."""
    return _TAKES.format(device=device)


def gpu_model(*arguments: str, share: float = 0.9, **keys: Any) -> dict[str, Any]:
    """The entry of a model that wants this share of a GPU's memory."""
    args = [*EAGER, "--gpu-memory-utilization", str(share), *arguments]
    return {"model": str(MODEL), "engine": "vllm", "args": args, **keys}


class GpuRouter(Server):
    """A router. The home folder of its models' processes is `home`."""

    poll_s = 0.2

    def __init__(self, home: Path, models: dict[str, Any], *arguments: str) -> None:
        self.port = free_port()
        file = home / "models.yaml"
        file.write_text(json.dumps({"models": models}))
        command = [*PREFIX, PYTHON, "-m", "vllm_cli", "serve", "--models", file]
        arguments = ("--host", "127.0.0.1", "--port", str(self.port), *arguments)
        super().__init__([*command, *arguments], gpu_variables(home), is_awaited=True)

    def complete(self, model: str) -> Answer:
        return self.ask("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 2}, timeout_s=_START_S)

    def models(self) -> dict[str, dict[str, Any]]:
        """Name of a model -> its row in `/status.json`."""
        return {row["id"]: row for row in self.ask("/status.json").json["models"]}

    def states(self) -> dict[str, str]:
        return {name: row["status"] for name, row in self.models().items()}


@contextmanager
def beside(script: str, variables: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Runs a Python script on the same GPUs. The script must end when its standard input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([PYTHON, "-c", script], env=variables, cwd=ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def peak_bounded(home: Path) -> Iterator[None]:
    """Reads NVML 20 times a second during the block. Fails if more than 95 % of a GPU was ever in use."""
    with beside(_SAMPLES, gpu_variables(home)) as watcher:
        yield
        output, _ = watcher.communicate()
    num_samples, peak_bytes = map(int, output.split())
    assert num_samples > 0
    assert 0.5 * _TOTAL_BYTES < peak_bytes < 0.95 * _TOTAL_BYTES


_SCRIPT: Final = """set -e
new=$(mktemp -d); old=$(mktemp -d)
mount --make-rprivate /
mount --rbind /dev $old
mount -t tmpfs none $new
for name in $(ls -A $old); do
  if [ -h $old/$name ]; then cp -P $old/$name $new/$name; continue; fi
  if [ -d $old/$name ]; then mkdir $new/$name; else touch $new/$name; fi
  mount --rbind $old/$name $new/$name
done
touch $new/nvidiactl $new/nvidia0
mount --rbind $new /dev
umount -l $new $old
rmdir $new $old
exec "$@"
"""
PREFIX: Final = ("unshare", "--mount", "sh", "-c", _SCRIPT, "sh")
"""A launcher that executes the words after it with this /dev."""
needs_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
