"""A server of vLLM's CUDA build on the stand-in for a GPU of tools/gpu_stub, on which no kernel runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.peer_vllm import ROOT
from tests.vllm_engine.vllm_server import VllmServer, launchers_of

CUDA: Final = ROOT / ".peers" / "cuda"
STUB: Final = ROOT / ".peers" / "gpu_stub"
MODEL: Final = ROOT / ".peers" / "model"
EAGER: Final = "--enforce-eager"
_INITIALIZED: Final = "(initialized)"


def stub_variables(home: Path) -> dict[str, str]:
    """Variables of a process that finds the stand-in; all caches and the devices' memory are in this home."""
    return {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "VLLM_CACHE_ROOT": str(home / ".cache" / "vllm"),
        "LD_LIBRARY_PATH": str(STUB),
        "LD_PRELOAD": (STUB / "preload").read_text(),
        "STUB_SHM": str(home / "devices"),
        "STUB_CUDA_LOG": str(home / "cuda.log"),
        "HF_HUB_OFFLINE": "1",
        # Otherwise vLLM compiles a sampler with nvcc in the first start.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }


class StubServer(VllmServer):
    """Starts `vllm serve` or `vllm-cli serve` of the CUDA build in a home folder."""

    launchers = launchers_of(CUDA / "bin")

    def __init__(self, launcher: str, home: Path, *words: str, environment: dict[str, str] | None = None) -> None:
        variables = stub_variables(home) | (environment or {})
        super().__init__(launcher, MODEL, "--max-model-len", "2048", *words, folder=home, environment=variables)

    def answers(self) -> bool:
        """Whether a completion has as many tokens as asked for: without kernels, the text is empty."""
        body = {"prompt": self.PROMPT, "max_tokens": self.MAX_TOKENS, "ignore_eos": True}
        answer = self.post("/v1/completions", **body)
        return bool(answer["usage"]["completion_tokens"] == self.MAX_TOKENS)

    def initializers(self) -> set[int]:
        """The processes that have initialized CUDA."""
        log = Path(self.variables["STUB_CUDA_LOG"])
        lines = log.read_text().splitlines() if log.exists() else []
        return {int(line.split()[0]) for line in lines if _INITIALIZED in line}

    def used_bytes(self) -> int:
        """NVML's used memory of the first device."""
        script = "from base.machine.nvml import read_gpus; gpu, *_ = read_gpus().gpus; "
        script += "print(gpu.total_bytes - gpu.free_bytes)"
        done = subprocess.run(
            [sys.executable, "-c", script], env=self.variables, cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(done.stdout)


def run_preflight(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`vllm-cli serve --preflight-only` with the stand-in."""
    command = [*StubServer.launchers["ours"], str(MODEL), "--preflight-only", *words]
    environment = {**os.environ, **stub_variables(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
