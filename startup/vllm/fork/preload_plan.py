"""Plans what the forkserver of a start imports (preloads): a list for the release, and the model's class."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from startup.hook import Hook, Name, Release
from startup.kernels.kernel_lists import KernelUse
from startup.storage.caches import of_type
from startup.vllm.patches.compiler import CompilerTime
from startup.vllm.vllm_imports import API_MODULES
from startup.vllm.vllm_main import MAIN
from startup.vllm_arguments.flags import flags_that_change
from startup.vllm_arguments.installed import InstalledVllm

if TYPE_CHECKING:
    from startup.vllm_arguments.vllm_line import VllmLine

_ENGINE_MODULES: Final = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
BEFORE_OTHERS_CODE: Final = ("vllm.v1.executor.abstract",)
"""Engine and worker of plain vLLM (0.29 to 0.33) have both imported it when they load plugins.

An engine that is its own worker has not imported `multiproc_executor` then.
"""
PRELOADING: Final = Hook(
    "preloading",
    does="imports the API server beside the forkserver's imports; runs `vllm serve` in the launcher",
    without="vLLM runs as a new program",
    needs=(MAIN, *map(Name, (*API_MODULES[1:], *_ENGINE_MODULES))),
    is_essential=True,
)

_SHIPPED: Final = Path(__file__).with_name("shipped_modules.json")
"""Which modules engines import in starts without special flags, by platform and release of vLLM.

`eager` has modules of every start, `compiled` further ones of starts that compile. A module that a release
lacks is skipped. `tools/shipped_modules.py` makes the lists from starts. Models are not in them.
"""
_FORMER_GPU_MODULES: Final = ("vllm.v1.worker.gpu_model_runner",)
"""Model Runner V1, the default until vLLM 0.32. vLLM uses V1 if V2 lacks a feature, and will remove V1."""


@dataclass(frozen=True)
class PreloadPlan:
    """The imports that a forkserver does, passed in a file because it accepts only names of modules."""

    folder: str
    """The folder to which the processes of this start write their journals."""
    modules: tuple[str, ...]
    model: str | None
    """The folder of the model whose class is imported, too. None if no model is on disk."""
    compiler: CompilerTime
    is_lean: bool
    """Whether rarely used imports are delayed."""
    release: Release
    kernels: KernelUse | None = None
    """The start, for the choice of the kernels that are compiled beside it. None: none are."""

    def write(self) -> Path:
        """Writes the plan into its folder. Returns the file."""
        path = Path(self.folder) / "preload.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "PreloadPlan":
        content = json.loads(path.read_bytes())
        kernels = of_type(KernelUse)(content["kernels"]) if content["kernels"] is not None else None
        changed = {"modules": tuple(content["modules"]), "release": tuple(content["release"]), "kernels": kernels}
        return cls(**{**content, **changed})


def plan_preload(folder: Path, vllm: InstalledVllm, line: "VllmLine", *, in_order: bool) -> PreloadPlan:
    """Plans the modules of the platform, of API servers and of the model's class.

    If `in_order`, code of others may change vLLM's modules before most of them are imported. So each process
    imports them itself, as in plain vLLM, and the plan has only what comes before that code.
    """
    servers = API_MODULES[1:2] if line.has(*flags_that_change("API servers")) else ()
    known = (*platform_modules(vllm, is_eager=line.is_eager), *servers)
    return PreloadPlan(
        folder=str(folder),
        modules=BEFORE_OTHERS_CODE if in_order else tuple(dict.fromkeys(known)),
        model=None if in_order or line.model_folder is None else str(line.model_folder),
        compiler=compiler_time(is_eager=line.is_eager),
        is_lean=not in_order,
        release=vllm.release,
    )


def platform_modules(vllm: InstalledVllm, *, is_eager: bool) -> tuple[str, ...]:
    """The modules that engine and worker of such a start import on this platform, whatever the model."""
    if vllm.is_for_cpu:
        return (*_ENGINE_MODULES, "vllm.v1.worker.cpu_worker", *_shipped_modules("cpu", vllm.release, is_eager))
    former = _FORMER_GPU_MODULES if vllm.release <= (0, 32) else ()
    return (*_ENGINE_MODULES, *former, *_shipped_modules("gpu", vllm.release, is_eager))


def _shipped_modules(platform: str, release: Release, is_eager: bool) -> list[str]:
    """The shipped list of the newest release up to this one, else of the oldest one."""
    by_release = {
        (int(major), int(minor)): modules
        for name, modules in json.loads(_SHIPPED.read_bytes())[platform].items()
        for major, minor in [name.split(".")]
    }
    found = max((each for each in by_release if each <= release), default=min(by_release))
    modules = by_release[found]
    return [*modules["eager"]] if is_eager else [*modules["eager"], *modules["compiled"]]


def compiler_time(*, is_eager: bool) -> CompilerTime:
    """When the forkserver imports torch's compiler: if the start is eager, once the compiler is used."""
    return "deferred" if is_eager else "now"
