"""The forkserver's imports before it forks, decided and written by the launcher."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from startup.hooks.left_out import left_out
from startup.hooks.of_vllm import CPU_MODULES, ENGINE_MODULES, GPU_MODULES
from startup.serve_words import is_eager
from startup.vllm.fork.preload_profile import PreloadProfile
from startup.vllm.installed import InstalledVllm

COMPILER: Final = "torch._inductor.lowering"
"""vLLM imports this (0.6 s) to patch it and to decorate helpers, even if nothing will be compiled."""

_API_SERVER: Final = ("vllm.entrypoints.cli.serve",)
_SEVERAL_API_SERVERS: Final = ("--api-server-count", "-asc", "--data-parallel-size", "-dp")
"""Flags that start API servers as separate processes; by default there is one per data parallel rank."""


CompilerTime = Literal["now", "late", "deferred"]
"""`now`: with vLLM's imports. `late`: not for patches and decorators alone. `deferred`: when it is used."""


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
    several_api_servers = any(word.replace("_", "-").startswith(_SEVERAL_API_SERVERS) for word in words)
    roots = (*platform_modules(vllm), *(_API_SERVER if several_api_servers else ()))
    known = profile.engine_modules
    is_known = bool(known) and profile.is_complete
    return PreloadPlan(
        folder=str(folder),
        modules=tuple(dict.fromkeys((*roots, *known))),
        model=None if is_known or model is None else str(model),
        compiler=compiler_time(vllm, words, known),
        left_out=left_out(),
    )


def platform_modules(vllm: InstalledVllm) -> tuple[str, ...]:
    """The modules of engine and worker that every start imports."""
    return (*ENGINE_MODULES, *(CPU_MODULES if vllm.is_for_cpu else GPU_MODULES))


def compiler_time(vllm: InstalledVllm, words: Sequence[str], known: Sequence[str]) -> CompilerTime:
    """A start that compiles nothing needs no compiler; `deferred` is untested on GPUs, hence `late` there.

    Args:
        vllm: the installed vLLM.
        words: the command line, or the relevant flags in a profile's kind.
        known: engine modules of the start's profile.
    """
    if not is_eager(words) or COMPILER in known:
        return "now"
    return "deferred" if vllm.is_for_cpu else "late"
