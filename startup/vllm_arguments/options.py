"""The typed settings of a start of vLLM."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from startup.settings.config import StartOptions

if TYPE_CHECKING:
    from startup.vllm_arguments.vllm_line import VllmLine


@dataclass(frozen=True, kw_only=True)
class VllmOptions(StartOptions):
    """The launcher's settings for a start of vLLM, and the command line that vLLM gets."""

    line: "VllmLine"
    start_method: str = "forkserver"
    """With `forkserver`, our forkserver forks the processes that vLLM would spawn."""
    web_page: bool = True
    """Whether `/` is a page with a chat and the model's state (`NetworkConfig.web_page`)."""
