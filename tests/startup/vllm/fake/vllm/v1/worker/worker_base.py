"""Creates the worker of a process and prepares its device."""

from typing import Any


class WorkerWrapperBase:
    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config

    def init_device(self) -> None:
        """Does nothing, because the fake has no device."""
