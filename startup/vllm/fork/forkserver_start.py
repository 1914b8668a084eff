"""Starts the forkserver with its preload plan and with the environment that its children's libraries need."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Final

from envs import foreign
from envs.registry import OWN_PREFIX, env
from startup.hook import Hook, Text
from startup.processes import new_program
from startup.processes.forkserver import ensure_forkserver
from startup.reports.crash.output_record import OutputRecord
from startup.vllm.fork.forkserver import READ_AT_EXEC, redirect_spawn
from startup.vllm.fork.preload_profile import PreloadPlan, PreloadProfile
from startup.vllm.journal import Journal
from startup.vllm.serving.server_context import ChildLink
from startup.vllm_words.installed import InstalledVllm

_CPU: Final = "vllm.platforms.cpu"
CHILD_VARIABLES: Final = Hook(
    "variables of children",
    does="starts the forkserver with vLLM's variables for workers (OpenMP, allocator, Inductor)",
    without="workers on CPU are slower, or are not forked",
    promise="workers on CPU are as fast as vLLM's: 1.01 (0.98–1.02)",
    needs=(
        Text((_CPU,), r'os\.environ\["LD_PRELOAD"\]', "LD_PRELOAD"),
        Text((_CPU,), r'os\.environ\["TORCHINDUCTOR_COMPILE_THREADS"\]', "TORCHINDUCTOR_COMPILE_THREADS"),
    ),
)

logger = logging.getLogger(__name__)

PRELOAD_MODULE: Final = "startup.vllm.fork.preload"
_LD_PRELOAD: Final = "LD_PRELOAD"


def start_forkserver(
    plan: PreloadPlan, journal: Journal, record: OutputRecord, *, environment: Mapping[str, str], pipes: ChildLink
) -> None:
    """Starts the forkserver, and returns before its imports are done. The first fork waits for the imports.

    `environment` has the variables that the forkserver gets in addition to the variables of this process.
    """
    ours = {env.VCLI_PRELOAD_PLAN.name: str(plan.write()), env.VCLI_API_PROCESS.name: str(os.getpid())}
    with foreign.overlaid({**environment, **ours}):
        at_exec = foreign.snapshot()
        _discard_unsuitable_dormant({*environment, *READ_AT_EXEC})
        ensure_forkserver(PRELOAD_MODULE)
    redirect_spawn(journal, record, environment=at_exec, pipes=pipes)


def _discard_unsuitable_dormant(names: Iterable[str]) -> None:
    """Discards a dormant forkserver if its libraries were loaded with other values of these variables."""
    loaded = (name for name in names if not name.startswith(OWN_PREFIX))
    differing = new_program.differing_variable(loaded)
    if differing is not None:
        logger.debug("the forkserver is a new program: %s differs from the standby's", differing)
        new_program.discard_dormant()


def forkserver_environment(vllm: InstalledVllm, profile: PreloadProfile) -> dict[str, str]:
    """Returns variables that vLLM will set for its children and that libraries read when they are loaded.

    The platform and the record of earlier starts (`profile`) determine the variables. Without
    PYTORCH_NVML_BASED_CUDA_CHECK, torch's check for a GPU may initialise CUDA. Forks could then not use it.
    """
    environment = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if vllm.is_for_cpu and CHILD_VARIABLES.applies:
        environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
        environment |= _preloaded_libraries(vllm)
    learned = {name: value for name, value in profile.environment.items() if not foreign.is_set(name)}
    if _LD_PRELOAD in profile.environment:
        others = environment.get(_LD_PRELOAD) or foreign.text_of(_LD_PRELOAD)
        libraries = f"{others}:{profile.environment[_LD_PRELOAD]}".split(":")
        learned[_LD_PRELOAD] = ":".join(dict.fromkeys(filter(None, libraries)))
    return environment | learned


def _preloaded_libraries(vllm: InstalledVllm) -> dict[str, str]:
    """LD_PRELOAD with torch's OpenMP and vLLM's allocator, in the order that vLLM's CPU platform uses."""
    given = foreign.text_of(_LD_PRELOAD)
    words = [given] if given else []
    if not any(name in given for name in ("libomp", "libgomp", "libiomp")):
        site = vllm.folder.parent
        found = [path for folder in ("torch.libs", "torch/lib") for path in (site / folder).glob("libgomp*.so*")]
        words += [str(path) for path in found[:1]]
    if "libtcmalloc" not in given:
        patterns = ("libtcmalloc_minimal*.so*", "libtcmalloc.so*")
        found = [path for pattern in patterns for path in (vllm.folder / "libs").glob(pattern)]
        words = [str(path) for path in found[:1]] + words
    return {_LD_PRELOAD: ":".join(words)} if words else {}
