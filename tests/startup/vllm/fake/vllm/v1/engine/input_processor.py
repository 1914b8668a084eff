"""Prepares requests for the engine."""

from vllm.config import EngineConfig


class InputProcessor:
    def __init__(self, config: EngineConfig | None, renderer: str) -> None:
        self.renderer = renderer
