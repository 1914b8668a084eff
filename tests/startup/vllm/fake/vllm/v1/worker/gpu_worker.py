"""The worker of a vLLM built for GPUs."""

import os

from vllm.v1.worker.cpu_worker import WorkerProc as WorkerProc

IMPORTED_IN = os.getpid()
