"""What the forkserver is to import before it forks: decided by the launcher, read by the forkserver."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from startup.vllm.installed import InstalledVllm
from startup.vllm.preload_profile import PreloadProfile

COMPILER: Final = "torch._inductor.lowering"
"""What vLLM imports in order to patch it, 0.6 s, and to decorate helpers, whether or not anything will be compiled."""

_ENGINE: Final = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
_ON_CPU: Final = ("vllm.v1.worker.cpu_worker",)
_ON_GPU: Final = ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner")
_API_SERVER: Final = ("vllm.entrypoints.cli.serve",)
_SEVERAL_API_SERVERS: Final = ("--api-server-count", "-asc", "--data-parallel-size", "-dp")
"""Flags that make it run in processes of its own: by default there is one for each data parallel rank."""
_EAGER_FLAGS: Final = ("--enforce-eager", "-O0", "-O.mode=0")


CompilerTime = Literal["now", "late", "deferred"]
"""`now`: as vLLM does. `late`: without what is imported only to patch or to decorate. `deferred`: when it is used."""


@dataclass(frozen=True)
class PreloadPlan:
    """Travels as a file: a forkserver is told module names and nothing else."""

    folder: str
    """Where the processes of this start keep their journals."""
    modules: tuple[str, ...]
    model: str | None
    """The model's folder, whose class is imported too; None where a list has been learnt."""
    compiler: CompilerTime
    """When torch's compiler is imported."""

    def write(self) -> Path:
        """Returns the file."""
        path = Path(self.folder) / "preload.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "PreloadPlan":
        """What `write` wrote."""
        content = json.loads(path.read_bytes())
        return cls(**{**content, "modules": tuple(content["modules"])})


def plan_preload(
    folder: Path, vllm: InstalledVllm, words: Sequence[str], profile: PreloadProfile, model: Path | None
) -> PreloadPlan:
    """The learnt list where there is one; else what every start on this platform imports."""
    several_api_servers = any(word.replace("_", "-").startswith(_SEVERAL_API_SERVERS) for word in words)
    roots = (
        *_ENGINE,
        *(_ON_CPU if vllm.is_for_cpu else _ON_GPU),
        *(_API_SERVER if several_api_servers else ()),
    )
    learnt = profile.engine_modules
    return PreloadPlan(
        folder=str(folder),
        modules=tuple(dict.fromkeys((*roots, *learnt))),
        model=None if learnt or model is None else str(model),
        compiler=_compiler_time(vllm, words, learnt),
    )


def _compiler_time(vllm: InstalledVllm, words: Sequence[str], learnt: Sequence[str]) -> CompilerTime:
    """A start that compiles nothing can do without; on GPUs, which were not tried, only without the superfluous."""
    is_eager = any(word.replace("_", "-") in _EAGER_FLAGS for word in words)
    if not is_eager or COMPILER in learnt:
        return "now"
    return "deferred" if vllm.is_for_cpu else "late"
