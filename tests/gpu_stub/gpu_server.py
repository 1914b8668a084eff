"""A server of vLLM's CUDA build on the stand-in for the GPU, which `STUB_…` variables disturb."""

import os
import subprocess
from pathlib import Path
from typing import Final

import psutil

from tests.support.cli import python_output
from tests.support.peer_vllm import ROOT
from tests.vllm_engine.vllm_server import VllmServer, title_of

_CUDA: Final = os.environ.get("PEER_CUDA", "cuda")
"""`cuda`, or `cuda-VERSION` for another vLLM of .peers."""
STUB: Final = ROOT / ".peers" / _CUDA.replace("cuda", "gpu_stub")
PYTHON: Final = ROOT / ".peers" / _CUDA / "bin" / "python"
MODEL: Final = ROOT / ".peers" / "model"
"""It has 9 attention heads, so that three ranks can share them."""
EAGER: Final = ("--enforce-eager", "--max-model-len", "2048")
UUID: Final = "GPU-00000000-0000-0000-0000-%012x"
"""Of the device with this number."""
_LOG: Final = "cuda.log"
_UNWANTED: Final = ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "CUDA_VISIBLE_DEVICES")
"""Variables of the caller that would lead elsewhere."""


def gpu_environment(home: Path) -> dict[str, str]:
    """Variables of a process on the stand-in, whose caches and whose GPU are in this folder."""
    libraries = (STUB / "preload").read_text().strip().split(":")
    return {
        "HOME": str(home),
        "LD_LIBRARY_PATH": str(STUB),
        "LD_PRELOAD": ":".join(str(STUB / Path(library).name) for library in libraries),
        "STUB_SHM": str(home / "gpu"),
        "STUB_CUDA_LOG": str(home / _LOG),
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # is compiled with nvcc
        "PYTHONDONTWRITEBYTECODE": "",
    }


def gpu_variables(home: Path) -> dict[str, str]:
    """All variables of such a process that is no `GpuServer`."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **gpu_environment(home), "PYTHONPATH": str(ROOT)}
    return {name: value for name, value in variables.items() if name not in _UNWANTED}


def used_bytes(variables: dict[str, str], number: int = 0) -> int:
    """NVML's used memory of a device, for a process with these variables."""
    script = f"from base.machine.nvml import read_gpus; gpu = read_gpus().gpus[{number}]; "
    script += "print(gpu.total_bytes - gpu.free_bytes)"
    return int(python_output(script, env=variables, cwd=ROOT))


def run_preflight(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`vllm-cli serve --preflight-only` with the stand-in."""
    command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", MODEL, "--preflight-only", *words]
    environment = {**os.environ, **gpu_environment(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


class GpuServer(VllmServer):
    """Its folder is the home of the user, so that a second start there finds what the first one has kept."""

    python = PYTHON

    def __init__(
        self,
        launcher: str,
        *arguments: str,
        folder: Path,
        environment: dict[str, str] | None = None,
        model: Path = MODEL,
    ) -> None:
        """As that of every vLLM; of the same model, unless another one is given."""
        self._cuda_log = folder / _LOG
        self._cuda_log.unlink(missing_ok=True)
        environment = {**gpu_environment(folder), **(environment or {})}
        super().__init__(launcher, model, *arguments, folder=folder, environment=environment)
        for name in _UNWANTED:
            if name not in environment:
                self.variables.pop(name, None)

    def generate(self) -> str:
        """Four special tokens: no kernel has computed others."""
        wanted = {"prompt": self.PROMPT, "max_tokens": self.MAX_TOKENS, "skip_special_tokens": False}
        answer = self.post("/v1/completions", **wanted, temperature=0, ignore_eos=True)
        return str(answer["choices"][0]["text"])

    def initialized(self) -> dict[int, float]:
        """The processes that have initialized CUDA since this start began, and when, in seconds."""
        if not self._cuda_log.exists():
            return {}
        lines = [line.split() for line in self._cuda_log.read_text().splitlines()]
        return {int(words[0]): float(words[2]) for words in lines if words[1:2] == ["(initialized)"]}

    def assert_only(self, titles: list[str]) -> list[psutil.Process]:
        """Processes with just these titles use CUDA, and no process that has ended did."""
        initialized = self.initialized()
        found = [process for process in self.titled("") if process.pid in initialized]
        assert [title_of(process) for process in found] == titles
        assert len(initialized) == len(found)
        return found

    def used_bytes(self, number: int = 0) -> int:
        """NVML's used memory of a device."""
        return used_bytes(self.variables, number)

    def is_forked(self, process: psutil.Process) -> bool:
        """Whether its forkserver has forked it."""
        parent = process.parent()
        return parent is not None and "forkserver" in " ".join(parent.cmdline())
