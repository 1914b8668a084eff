"""The worker of a vLLM built for GPUs."""

import gc

from vllm.v1.worker.cpu_worker import WorkerProc as WorkerProc


class Worker:
    def shutdown(self) -> None:
        gc.unfreeze()
