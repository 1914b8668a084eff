"""Runs models on a GPU. Its graphs take the memory that a test sets. A negative size: more than there is."""

from typing import Any

from vllm.v1.worker.gpu.cudagraph_utils import profile_cudagraph_memory as _profile_cudagraph_memory


class GPUModelRunner:
    num_measured = 0
    captured_bytes = 0

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config

    def profile_cudagraph_memory(self) -> int:
        return _profile_cudagraph_memory(self)

    def capture_model(self, *, profile_only: bool = False) -> int:
        if self.captured_bytes < 0:
            raise MemoryError("CUDA out of memory")
        return self.captured_bytes
