"""The worker of a vLLM built for GPUs."""

from vllm.v1.worker.cpu_worker import WorkerProc as WorkerProc
