"""Causes about the memory of GPUs and of the machine."""

from typing import Final

from startup.causes.known_cause import KnownCause
from startup.causes.phase import KV_CACHE

MEMORY: Final = (
    KnownCause(
        "kv-cache-too-small",
        "the KV cache has no room for one request of --max-model-len tokens",
        (
            "To serve at least one request with",
            "is larger than the maximum number of tokens that can be stored in KV cache",
        ),
        "Lower --max-model-len (auto takes what fits), raise --gpu-memory-utilization, use --kv-cache-dtype fp8, "
        "or spread the model over more GPUs with --tensor-parallel-size.",
        phase=KV_CACHE,
    ),
    KnownCause(
        "no-room-for-kv-cache",
        "weights and activations leave no memory for the KV cache",
        ("No available memory for the cache blocks", "Cannot auto-fit max_model_len: not enough"),
        "Raise --gpu-memory-utilization, lower --max-num-batched-tokens or --max-num-seqs, or use a quantized model "
        "or more GPUs.",
        phase=KV_CACHE,
    ),
    KnownCause(
        "kv-cache-not-uniform",
        "the model's layers need KV caches of different kinds, and only one kind is allowed",
        ("Hybrid KV cache manager is disabled but failed to convert",),
        "Leave out --disable-hybrid-kv-cache-manager; with --kv-transfer-config use a connector that supports hybrid "
        "models, often a newer version of it.",
    ),
    KnownCause(
        "gpu-memory-taken",
        "other processes hold memory of the GPU",
        (
            "Free memory on device … less than desired GPU memory utilization",
            "Free memory on device … less than the engine's budget",
        ),
        "`nvidia-smi` shows who holds it: end it, also workers that a dead vLLM has left, or lower "
        "--gpu-memory-utilization.",
    ),
    KnownCause(
        "gpu-memory-changed",
        "the use of the GPU's memory changed while vLLM measured it",
        ("Error in memory profiling",),
        "Start one server after the other on a GPU, and wait until processes that end have given their memory back.",
    ),
    KnownCause(
        "gpu-out-of-memory",
        "the GPU has not enough memory",
        (
            "CUDA out of memory",
            "HIP out of memory",
            "XPU out of memory",
            "NPU out of memory",
            "CUDA error: out of memory",
            "CUDA Error: out of memory",
            "HIP error: out of memory",
            "torch.OutOfMemoryError",
            "torch.cuda.OutOfMemoryError",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "Ran out of memory in memory space",
            "RESOURCE_EXHAUSTED",
            "nrt_tensor_allocate…Allocation Failure",
        ),
        "Lower --gpu-memory-utilization if it happens in graphs, compilation or requests; else --max-model-len, "
        "--max-num-seqs or --max-num-batched-tokens; or use a quantized model or --tensor-parallel-size.",
    ),
    KnownCause(
        "gpu-memory-query-failed",
        "the GPU's memory is exhausted, or its driver does not answer in this container",
        ("NVML_SUCCESS == r INTERNAL ASSERT FAILED",),
        "Treat it as an exhausted GPU: `nvidia-smi` shows who holds the memory. If that fails too, the container's "
        "driver does not fit the host's: restart the container.",
    ),
    KnownCause(
        "cpu-memory-too-small",
        "the machine has less free memory than vLLM's share for the CPU",
        ("Available memory on node … is less than", "Not enough memory for CPU KV cache"),
        "Lower VLLM_CPU_KVCACHE_SPACE or --gpu-memory-utilization, or free memory.",
    ),
    KnownCause(
        "host-out-of-memory",
        "the machine's memory is exhausted",
        (
            "DefaultCPUAllocator: can't allocate memory",
            "Cannot allocate memory",
            "^MemoryError$",
            "^MemoryError:",
            "Task was killed due to the node running low on memory",
            "ray.exceptions.OutOfMemoryError",
        ),
        "Raise the memory limit of the container or pod, lower --swap-space or --cpu-offload-gb, or load fewer "
        "processes on this machine.",
    ),
    KnownCause(
        "killed-from-outside",
        "another program or person killed a process",
        ("SIGKILL, not by the kernel's OOM killer",),
        "The memory of the container or machine did not run out: look for who sends SIGKILL (an operator, a job "
        "scheduler, earlyoom or systemd-oomd, `kill -9`).",
        where="end",
    ),
    KnownCause(
        "oom-killed",
        "the kernel killed a process because memory ran out",
        ("SIGKILL, by the kernel's OOM killer",),
        "Raise the memory limit of the container or pod, lower VLLM_CPU_KVCACHE_SPACE, --cpu-offload-gb or "
        "--max-model-len, or run fewer processes on this machine.",
        where="end",
    ),
    KnownCause(
        "process-killed",
        "a process was killed from outside, as the OOM killer does when memory ends",
        (
            "^Killed$",
            " Killed   ",
            "OOMKilled",
            "oom-kill",
            "Out of memory: Killed process",
            "Memory cgroup out of memory",
            "exit code: -9",
            "Failed core proc(s): …: -9",
            "died with exit code -9",
            "exit code 137",
            "exited with code 137",
            "exitcode=-9",
            "is killed by signal: Killed",
        ),
        "`kubectl describe pod`, `docker inspect` or `dmesg` tell whether it was the OOM killer: then raise the "
        "memory limit (loading needs about the size of the largest file of weights besides the server itself).",
        where="end",
    ),
    KnownCause(
        "shm-too-small",
        "/dev/shm is too small",
        (
            "Error while creating shared memory segment",
            "unable to open shared memory object",
            "Bus error",
            "unable to mmap … /dev/shm",
            "exit code: -7",
        ),
        "docker run --ipc=host or --shm-size 8g; in Kubernetes an emptyDir with medium: Memory at /dev/shm.",
        where="hint",
    ),
)
