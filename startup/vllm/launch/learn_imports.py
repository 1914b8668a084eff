"""Imports what a start of vLLM imports, without running a model: for images built without their GPU.

Two new programs do it, one as the forkserver and one as the API server. What a first start would otherwise
compute or search for is in the cache folder afterwards.
"""

import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from envs.registry import env
from startup.imports.learned_imports import learn, learned_imports
from startup.vllm.fork.preload_plan import plan_preload
from startup.vllm.fork.preload_profile import PreloadProfile, StartKind
from startup.vllm.imports import LATER_MODULES, import_api_server
from startup.vllm.installed import InstalledVllm
from startup.vllm.patches.model_registry import inspect_models, model_modules

_FORKSERVER: Final = "forkserver"
_API: Final = "api"


def learn_imports(
    vllm: InstalledVllm, words: Sequence[str], model: Path | None, *, folder: Path, environment: Mapping[str, str]
) -> None:
    """Runs the two programs.

    Args:
        vllm: the installed vLLM.
        words: vLLM's command line.
        model: the model's folder, whose class is imported and inspected too.
        folder: for temporary files.
        environment: the programs' variables, with the cache folder.

    Raises:
        CalledProcessError: vLLM cannot be imported here.
    """
    plan = plan_preload(folder, vllm, words, PreloadProfile(StartKind.of(vllm, words, model)), model)
    variables = {**environment, env.VCLI_PRELOAD_PLAN.name: str(plan.write())}
    for role in (_FORKSERVER, _API):
        command = [sys.executable, "-m", __name__, role, str(model or "")]
        subprocess.run(command, env=variables, check=True, capture_output=True, text=True)


def _main(role: str, model: str) -> None:
    if role == _FORKSERVER:
        importlib.import_module("startup.vllm.fork.preload")  # does the work
        if model:
            inspect_models(model_modules(Path(model)))
    else:
        with learned_imports():
            failed = import_api_server(LATER_MODULES)
        if failed:
            sys.exit("\n".join(f"{name}: {reason}" for name, reason in failed.items()))
        learn()


if __name__ == "__main__":
    _main(*sys.argv[1:])
