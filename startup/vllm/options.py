"""The launcher's own settings for a start of vLLM; all other words are passed to vLLM unchanged."""

from dataclasses import dataclass

from startup.config import StartOptions


@dataclass(frozen=True, kw_only=True)
class VllmOptions(StartOptions):
    """The settings of one start."""

    words: tuple[str, ...]
    """The command line for `vllm serve`, unchanged and in order."""
    start_method: str = "forkserver"
    """`forkserver` replaces the `spawn` that vLLM would use; the other methods are left to vLLM."""
    is_preflight_only: bool = False
    is_json: bool = False
