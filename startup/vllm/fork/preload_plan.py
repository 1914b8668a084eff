"""The forkserver's imports before it forks, decided and written by the launcher."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from startup.hooks.hook import Hook, Name, left_out
from startup.serve_words import is_eager, normalise
from startup.vllm.fork.preload_profile import PreloadProfile
from startup.vllm.imports import LATER_MODULES
from startup.vllm.installed import InstalledVllm
from startup.vllm.patches.compiler import COMPILER, CompilerTime

_ENGINE_MODULES: Final = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
ENGINE: Final = Hook(
    "engine's modules",
    does="imports them in the forkserver",
    without="nothing is imported in advance",
    needs=tuple(map(Name, _ENGINE_MODULES)),
    is_essential=True,
)

_CPU_MODULES: Final = ("vllm.v1.worker.cpu_worker",)
_GPU_MODULES: Final = ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner")
WORKER: Final = Hook(
    "workers' modules",
    does="imports them in the forkserver and `vllm.kernels` in the API server",
    without="each worker imports them itself in the first start; later starts know them from the profile",
    needs=tuple(map(Name, (*_CPU_MODULES, *_GPU_MODULES, *LATER_MODULES))),
)

_API_SERVER: Final = ("vllm.entrypoints.cli.serve",)
_SEVERAL_API_SERVERS: Final = ("--api-server-count", "-asc", "--data-parallel-size", "-dp")
"""Flags that start API servers as separate processes; by default there is one per data parallel rank."""


@dataclass(frozen=True)
class PreloadPlan:
    """Passed as a file, since a forkserver accepts only module names."""

    folder: str
    """Where the processes of this start write their journals."""
    modules: tuple[str, ...]
    model: str | None
    """The folder of a model whose class is imported too; None if the profile has a list of modules."""
    compiler: CompilerTime
    """When torch's compiler is imported."""
    left_out: tuple[str, ...] = ()
    """Names of the hooks that do not fit."""

    def write(self) -> Path:
        """Writes the plan into its folder; returns the file."""
        path = Path(self.folder) / "preload.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "PreloadPlan":
        """Reads a plan that `write` has written."""
        content = json.loads(path.read_bytes())
        return cls(**{**content, "modules": tuple(content["modules"]), "left_out": tuple(content["left_out"])})


def plan_preload(
    folder: Path, vllm: InstalledVllm, words: Sequence[str], profile: PreloadProfile, model: Path | None
) -> PreloadPlan:
    """The platform's modules and then the profile's; without a profile, the model's class too."""
    several_api_servers = any(normalise(word).startswith(_SEVERAL_API_SERVERS) for word in words)
    roots = (*platform_modules(vllm), *(_API_SERVER if several_api_servers else ()))
    known = profile.engine_modules
    is_known = bool(known) and profile.is_complete
    return PreloadPlan(
        folder=str(folder),
        modules=tuple(dict.fromkeys((*roots, *known))),
        model=None if is_known or model is None else str(model),
        compiler=compiler_time(vllm, known, is_eager=is_eager(words)),
        left_out=left_out(),
    )


def platform_modules(vllm: InstalledVllm) -> tuple[str, ...]:
    """The modules of engine and worker that every start imports."""
    return (*_ENGINE_MODULES, *(_CPU_MODULES if vllm.is_for_cpu else _GPU_MODULES))


def compiler_time(vllm: InstalledVllm, known: Sequence[str], *, is_eager: bool) -> CompilerTime:
    """A start that compiles nothing needs no compiler; `deferred` is untested on GPUs, hence `late` there.

    Args:
        vllm: the installed vLLM.
        known: engine modules of the start's profile.
        is_eager: whether the command line switches the compiler off.
    """
    if not is_eager or COMPILER in known:
        return "now"
    return "deferred" if vllm.is_for_cpu else "late"
