"""Measures the memory of graphs."""

from typing import Any


def profile_cudagraph_memory(runner: Any) -> int:
    runner.num_measured += 1
    runner.capture_model(profile_only=True)
    return 1000


class CudaGraphManager:
    def __init__(self) -> None:
        self._capture_descs: dict[Any, list[Any]] = {}
        self._candidates: dict[Any, list[Any]] = {}


class ModelCudaGraphManager(CudaGraphManager):
    def capture(self) -> None: ...
