"""Prints what `shipped_modules.json` lacks of the modules that engine and workers of a running start import.

    .peers/cuda/bin/python -m tools.shipped_modules PID

Run it with vLLM's interpreter. PID is the process of a ready server that `vllm-cli serve` has started. It has
compiled nothing: it has `--enforce-eager` for the list `eager`, or is the second start without flags for the
list `compiled`. Prints vLLM's modules, but none that another printed module imports.
"""

import json
import sys
from pathlib import Path

from envs.registry import env
from startup.hook import find_unfit_silently, place_only_for
from startup.settings.serve_arguments import is_eager
from startup.vllm.fork.preload_plan import platform_modules
from startup.vllm.journal import API_SERVER, MAIN, StartRecordings
from startup.vllm.patches.placing import place_hooks
from startup.vllm.vllm_imports import import_leniently, importing_vllm
from startup.vllm_arguments.installed import require_vllm

_OF_MODELS = ("vllm.model_executor.models.", "vllm.models.")


def main(pid: int) -> None:
    vllm = require_vllm()
    place_only_for(vllm.release)
    find_unfit_silently()
    place_hooks("forkserver")
    process = Path(f"/proc/{pid}")
    eager = is_eager(process.joinpath("cmdline").read_text().split("\0"))
    missing = []
    with importing_vllm("deferred" if eager else "now", late_in="forkserver"):
        import_leniently(platform_modules(vllm, is_eager=eager))
        for name in _imported_by_engines(process):
            if name not in sys.modules and name.startswith("vllm.") and not name.startswith(_OF_MODELS):
                import_leniently([name])
                missing.append(name)
    print(json.dumps(missing, indent=1))


def _imported_by_engines(process: Path) -> list[str]:
    """The modules that engine and workers have imported after they were forked, in order of import."""
    children = [int(pid) for path in process.glob("task/*/children") for pid in path.read_text().split()]
    variables = dict(
        each.split("=", 1)
        for child in children
        for each in Path(f"/proc/{child}/environ").read_text().split("\0")
        if each.startswith(env.VCLI_START_FOLDER.name)
    )
    recordings = StartRecordings.read(Path(variables[env.VCLI_START_FOLDER.name]))
    engines = {name for name in recordings.modules if not name.startswith((MAIN, API_SERVER))}
    return list(dict.fromkeys(module for name in engines for module in recordings.modules[name]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
