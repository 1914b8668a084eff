"""How vLLM's processes are started, and whether the API server's process may do without torch's compiler."""

from envs import foreign
from envs.registry import env
from startup.vllm.command_line import CommandLine


def wanted_start_method() -> str:
    """`forkserver` replaces the `spawn` that vLLM would use; the user's own choice is left to vLLM."""
    variable = env.VLLM_WORKER_MULTIPROC_METHOD
    return variable.get() if variable.raw else "forkserver"


def may_defer_compiler(line: CommandLine, start_method: str) -> bool:
    """Whether lean imports are on, and no model runs in this process or in a fork of it."""
    runs_here = foreign.text_of("VLLM_ENABLE_V1_MULTIPROCESSING") not in ("", "1") or line.has("--headless")
    return env.VCLI_LEAN_IMPORTS.get() and not runs_here and start_method != "fork"
