"""Prints what `shipped_profiles.json` lacks of the preload profiles that starts with this HOME have learnt.

    HOME=/tmp/home .peers/cuda/bin/python -m tools.preload_profiles

Run it with vLLM's interpreter, after a start that compiled nothing: `--enforce-eager` for the list `eager`,
or a second start without flags for the list `compiled`. Prints only vLLM's modules, and of these only those
that no other one imports.
"""

import json
import sys

from startup.hook import find_unfit_silently, place_only_for
from startup.settings.serve_arguments import is_eager
from startup.vllm.fork.preload_profile import PreloadProfile, load_all_profiles, platform_modules
from startup.vllm.patches.placing import place_hooks
from startup.vllm.vllm_imports import import_leniently, importing_vllm
from startup.vllm_arguments.installed import InstalledVllm, require_vllm

_OF_MODELS = ("vllm.model_executor.models.", "vllm.models.")


def main() -> None:
    vllm = require_vllm()
    place_only_for(vllm.release)
    find_unfit_silently()
    place_hooks("forkserver")
    [profile] = [each for each in load_all_profiles() if each.kind.version == vllm.version]
    print(json.dumps(_missing(vllm, profile), indent=1))


def _missing(vllm: InstalledVllm, profile: PreloadProfile) -> list[str]:
    eager = is_eager(profile.kind.flags)
    missing = []
    with importing_vllm("deferred" if eager else "now", late_in="forkserver"):
        import_leniently(platform_modules(vllm, is_eager=eager))
        for name in profile.engine_modules:
            if name not in sys.modules and name.startswith("vllm.") and not name.startswith(_OF_MODELS):
                import_leniently([name])
                missing.append(name)
    return missing


if __name__ == "__main__":
    main()
