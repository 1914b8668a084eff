"""A server of vLLM's CUDA build on the stand-in for the GPU. `STUB_…` variables cause faults."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.cli import python_output
from tests.support.peer_vllm import ROOT
from tests.vllm_engine.vllm_server import VllmServer, title_of

_CUDA: Final = os.environ.get("PEER_CUDA", "cuda")
"""`cuda`, or `cuda-VERSION` for another version of vLLM in .peers."""
STUB: Final = ROOT / ".peers" / _CUDA.replace("cuda", "gpu_stub")
PYTHON: Final = ROOT / ".peers" / _CUDA / "bin" / "python"
MODEL: Final = ROOT / ".peers" / "model"
"""A model with 9 attention heads, which three ranks can share."""
EAGER: Final = ("--enforce-eager", "--max-model-len", "2048")
UUID: Final = "GPU-00000000-0000-0000-0000-%012x"
"""The UUID of the device with this number."""
_LOG: Final = "cuda.log"
_UNWANTED: Final = ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "CUDA_VISIBLE_DEVICES")
"""Variables of the caller that would choose other folders or devices."""


def gpu_environment(home: Path) -> dict[str, str]:
    """Variables of a process on the stand-in. The caches and the fake GPU's files are in `home`."""
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
    """All variables of a process on the stand-in that no `GpuServer` starts."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **gpu_environment(home), "PYTHONPATH": str(ROOT)}
    return {name: value for name, value in variables.items() if name not in _UNWANTED}


def used_bytes(variables: dict[str, str]) -> list[int]:
    """The used memory of each device that NVML reports to a process with these variables."""
    script = "from base.machine.nvml import read_gpus; gpus = read_gpus().gpus; "
    script += "print([gpu.total_bytes - gpu.free_bytes for gpu in gpus])"
    return json.loads(python_output(script, env=variables, cwd=ROOT))


def run_preflight(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `vllm-cli serve --preflight-only` on the stand-in."""
    command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", MODEL, "--preflight-only", *arguments]
    environment = {**os.environ, **gpu_environment(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def forks_beside_cuda(home: Path) -> list[str]:
    """The stand-in's log of forks of processes that had initialized CUDA, as `(forked) PARENT`.

    A fork that only executes a program, as those of `subprocess` and `posix_spawn`, is not in it.
    """
    lines = (home / _LOG).read_text().splitlines() if (home / _LOG).exists() else []
    return [line.partition(" ")[2] for line in lines if " (forked) " in line]


class GpuServer(VllmServer):
    """A server on the stand-in. `folder` is its home, so a second start finds the first start's caches.

    The end of the `with` block also checks that no process of ours was forked after it had initialized CUDA.
    """

    python = PYTHON

    def __init__(
        self,
        launcher: str,
        *arguments: str,
        folder: Path,
        environment: dict[str, str] | None = None,
        model: Path = MODEL,
    ) -> None:
        """Takes the same arguments as `VllmServer`, and by default the same model for all tests."""
        self._home = folder
        self._cuda_log = folder / _LOG
        self._cuda_log.unlink(missing_ok=True)
        environment = {**gpu_environment(folder), **(environment or {})}
        super().__init__(launcher, model, *arguments, folder=folder, environment=environment)
        for name in _UNWANTED:
            if name not in environment:
                self.variables.pop(name, None)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        forks = forks_beside_cuda(self._home)
        assert self.name == "plain" or not forks, f"beside CUDA: {forks}"

    def generate(self, **options: str) -> str:
        """The text of a completion: four special tokens, because no kernel computes other tokens."""
        return str(self._complete(**options)["choices"][0]["text"])

    def usage(self) -> Any:
        """The usage of a completion, not its text. Ranks and the graphs do not always read token 0."""
        return self._complete()["usage"]

    def _complete(self, **options: str) -> Any:
        wanted = {"prompt": self.PROMPT, "max_tokens": self.MAX_TOKENS, "skip_special_tokens": False, **options}
        return self.post("/v1/completions", **wanted, temperature=0, ignore_eos=True)

    def initialized(self) -> dict[int, float]:
        """Id of each process that has initialized CUDA since this start began -> the time in seconds."""
        if not self._cuda_log.exists():
            return {}
        lines = [line.split() for line in self._cuda_log.read_text().splitlines()]
        return {int(arguments[0]): float(arguments[2]) for arguments in lines if arguments[1:2] == ["(initialized)"]}

    def assert_only(self, titles: list[str]) -> list[psutil.Process]:
        """Checks that exactly the processes with these titles have initialized CUDA, and returns them."""
        initialized = self.initialized()
        found = [process for process in self.titled("") if process.pid in initialized]
        assert [title_of(process) for process in found] == titles
        assert len(initialized) == len(found)
        return found

    def used_bytes(self) -> list[int]:
        """The used memory of each device that NVML reports to the server."""
        return used_bytes(self.variables)

    def is_forked(self, process: psutil.Process) -> bool:
        """Whether a forkserver has forked the process."""
        parent = process.parent()
        return parent is not None and "forkserver" in " ".join(parent.cmdline())
