"""Causes about GPUs, their drivers and what they can compute, and about memory."""

from string import ascii_uppercase
from typing import Final

from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.own_faults import FORKED_DRIVER
from startup.reports.causes.phase import GRAPHS, KV_CACHE

DEVICES: Final = (
    KnownCause(
        "driver-too-old",
        "the GPU's driver does not fit the CUDA version of this vLLM",
        (
            "The NVIDIA driver on your system is too old",
            "CUDA driver version is insufficient for CUDA runtime version",
            "forward compatibility was attempted on non supported HW",
            "system has unsupported display driver / cuda driver combination",
            "the provided PTX was compiled with an unsupported toolchain",
            "ErrorUnsupportedPtxVersion",
            "Error 803",
            "Error 804",
        ),
        "Update the driver, or use a vLLM built for an older CUDA. In a container, remove cuda-compat from "
        "LD_LIBRARY_PATH.",
    ),
    KnownCause(
        "driver-library-mismatch",
        "driver and library of NVIDIA have different versions",
        ("Driver/library version mismatch", "NVMLError_LibRmVersionMismatch"),
        "The driver was updated while it was in use: reboot, or reload its kernel modules.",
    ),
    KnownCause(
        "fabric-manager-missing",
        "the GPUs' NVSwitch fabric is not set up",
        ("system not yet initialized", "Error 802"),
        "Install and start nvidia-fabricmanager in the driver's version.",
    ),
    KnownCause(
        "unknown-device",
        "vLLM cannot use the name of a GPU or an instance of MIG in CUDA_VISIBLE_DEVICES",
        ("invalid literal for int() with base 10: 'MIG-", "invalid literal for int() with base 10: 'GPU-"),
        "Give numbers, which each vLLM reads: CUDA_VISIBLE_DEVICES=0 (Slurm and Kubernetes give names). A name must be "
        "one of `nvidia-smi -L` in the container; an instance of MIG gets a new one when it is created.",
    ),
    KnownCause(
        "driver-library-unfit",
        "the library of the GPU's driver (libcuda.so.1) that was found is a stub or too old",
        tuple(f"undefined symbol: cu{letter}" for letter in ascii_uppercase),
        "Take the stubs of a CUDA toolkit and cuda-compat out of LD_LIBRARY_PATH, so that the driver's own library is "
        "found (`ldconfig -p`); in a container let the runtime mount it (--gpus all); else update the driver.",
    ),
    KnownCause(
        "no-device",
        "no GPU is visible",
        (
            "Failed to infer device type",
            "No CUDA GPUs are available",
            "No HIP GPUs are available",
            "Found no NVIDIA driver on your system",
            "Device string must not be empty",
            "no CUDA-capable device is detected",
            "libcuda.so.1: cannot open",
            "Can't initialize NVML",
            "NVML Shared Library Not Found",
            "Device acquire failed",
        ),
        "Give docker run --gpus all, or nvidia.com/gpu in the pod's limits; check CUDA_VISIBLE_DEVICES; without a GPU, "
        "install vLLM for the CPU.",
    ),
    KnownCause(
        "no-platform",
        "vLLM sees no GPU, and this build is not the one for the CPU",
        ("No platform detected, vLLM is running on UnspecifiedPlatform",),
        "Give docker run --gpus all, or set nvidia.com/gpu in the pod's limits; install vLLM's build for GPU or CPU.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "container-without-gpus",
        "the container's runtime gives no GPUs to containers",
        (
            "could not select device driver",
            "nvidia-container-cli: ",
            "unknown or invalid runtime name: nvidia",
            "unresolvable CDI devices",
        ),
        "Install nvidia-container-toolkit on the host, run `nvidia-ctk runtime configure`, and restart Docker; for CDI "
        "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`.",
        where="end",
    ),
    KnownCause(
        "too-few-gpus",
        "the flags ask for more GPUs than are visible",
        (
            "is larger than the number of available GPUs",
            "CUDA error: invalid device ordinal",
            "HIP error: invalid device ordinal",
            "local_rank … is out of bounds for",
        ),
        "Lower --tensor-parallel-size, --pipeline-parallel-size or --data-parallel-size, or make more GPUs visible "
        "(CUDA_VISIBLE_DEVICES, the container's limits).",
    ),
    KnownCause(
        "ranks-without-processors",
        "on a CPU, each rank needs processors of its own",
        ("Not enough allowed NUMA nodes to bind threads of", "doesn't match local world size"),
        "Set VLLM_CPU_OMP_THREADS_BIND to the processors of each rank, such as '0-3|4-7' for two, or lower "
        "--tensor-parallel-size, --pipeline-parallel-size and --data-parallel-size.",
    ),
    KnownCause(
        "no-kernel-for-this-gpu",
        "this build has no code for this GPU",
        (
            "no kernel image is available for execution on the device",
            "invalid device function",
            "hipErrorNoBinaryForGpu",
            "is not compatible with the current PyTorch installation",
            "is not implemented for Blackwell",
            "Failed to initialize cutlass",
            "No compiled …capability",
            "No compiled …kernel",
            "cutlass…, Error Internal",
        ),
        "Use a newer vLLM and torch for a new GPU, an older one for an old GPU, or build vLLM from source for it "
        "(TORCH_CUDA_ARCH_LIST).",
    ),
    KnownCause(
        "kernel-too-large",
        "a Triton kernel needs more shared memory than this GPU has",
        ("out of resource: shared memory",),
        "The kernel is tuned for another GPU: use another --attention-backend, --kv-cache-dtype auto or a newer vLLM.",
    ),
    KnownCause(
        "kernel-image-invalid",
        "the GPU does not read the compiled code: it is for another GPU or a newer driver",
        ("device kernel image is invalid",),
        "Use a build for this GPU (on AMD for its gfx number); else update the driver, or set TRITON_PTXAS_PATH to the "
        "ptxas of the CUDA version that the driver supports.",
    ),
    KnownCause(
        "bfloat16-unsupported",
        "this GPU cannot compute in bfloat16",
        ("Bfloat16 is only supported on GPUs with compute capability of at least",),
        "--dtype half",
    ),
    KnownCause(
        "quantization-unsupported",
        "this GPU cannot compute the model's quantization",
        (
            "is not supported for the current GPU. Minimum capability",
            "Quantization scheme is not supported for",
            "is not supported for quantization method",
            "fp8e4nv not supported in this architecture",
            "Failed to find a kernel that can implement the",
        ),
        "Use a model with another quantization (AWQ and GPTQ run on older GPUs than FP8 and NVFP4), or a newer GPU; "
        "leave out --kv-cache-dtype; if the text names a dtype, --dtype half.",
    ),
    KnownCause(
        "attention-sinks-unsupported",
        "no attention kernel for this GPU has the attention sinks that the model needs",
        ("No valid attention backend found…has_sink=True",),
        "Leave out --attention-backend; gpt-oss needs a Hopper or Blackwell GPU, or a newer vLLM.",
    ),
    KnownCause(
        "kv-cache-dtype-unsupported",
        "no attention kernel for this GPU reads this kind of KV cache",
        ("No valid attention backend found…kv_cache_dtype not supported",),
        "--kv-cache-dtype auto.",
    ),
    KnownCause(
        "attention-backend-missing",
        "no attention kernel computes this model on this GPU",
        ("No valid attention backend found",),
        "The line has the reasons of each kernel: `compute capability` is this GPU, `sparse` and `MLA` are the model, "
        "which may need a newer vLLM; other words are flags: leave them out.",
    ),
    KnownCause(
        "nvcc-too-old",
        "nvcc compiles kernels, and is older than this GPU",
        (
            "FlashInfer requires GPUs with sm75 or higher",
            "No supported CUDA architectures",
            "Unsupported gpu architecture",
        ),
        "Install the CUDA toolkit that this torch was built for (12.8 or newer for Blackwell) and set CUDA_HOME to it. "
        "Or, also for GPUs before Turing: VLLM_USE_FLASHINFER_SAMPLER=0 and another --attention-backend.",
    ),
    KnownCause(
        "gpu-too-old",
        "this GPU is too old for these flags",
        ("GPUs with compute capability below", "requires GPUs with sm", "only supports Ampere GPUs or newer"),
        "Leave out --attention-backend and --kv-cache-dtype, or use an older vLLM or a newer GPU.",
    ),
    KnownCause(
        "backend-unsupported",
        "the backend that a flag chooses does not compute this model",
        (
            "_backend=… is not supported for",
            "is not valid for this configuration. Reason",
            "is not supported for vit attention",
            "does not support the deployment configuration",
            "explicitly requested moe_backend",
        ),
        "Leave out --attention-backend, --moe-backend and similar flags, so that vLLM chooses one that fits, and what "
        "the reasons in the text are about (kv_cache_dtype: --kv-cache-dtype).",
    ),
    KnownCause(
        "moe-backend-missing",
        "no kernel for mixtures of experts computes this model on this GPU",
        ("MoE backend supports the deployment configuration",),
        "Leave out --moe-backend, --enable-expert-parallel and VLLM_BATCH_INVARIANT; else use a newer vLLM or another "
        "quantization of the model. The text may have the reasons.",
    ),
    KnownCause(
        "deep-gemm-failed",
        "DeepGEMM cannot compute this model on this GPU",
        ("Unknown SF transformation", "Assertion error (…gemm"),
        "Set VLLM_USE_DEEP_GEMM=0, or use a newer vLLM.",
    ),
    KnownCause(
        "flashinfer-failed",
        "FlashInfer cannot compute this model on this GPU",
        ("BatchPrefillWithPagedKVCache failed", "BatchDecodeWithPagedKVCache failed"),
        "Use another --attention-backend (TRITON_ATTN), no --kv-cache-dtype fp8, VLLM_USE_FLASHINFER_SAMPLER=0; "
        "or install the FlashInfer that vLLM asks for, with the CUDA toolkit of torch.",
    ),
    KnownCause(
        "gpu-device-lost",
        "the driver has lost the GPU",
        ("_ERROR_DEVICE_LOST", "DeviceLost", "ggml_vulkan: device lost", "because the context is lost"),
        "`dmesg` has the driver's reason. Use less memory and smaller batches (--gpu-memory-utilization and "
        "--max-num-batched-tokens, llama.cpp: -c and -ub); update kernel and driver; of several GPUs try one.",
    ),
    KnownCause(
        "driver-does-not-answer",
        "the driver of the GPU does not answer, as in WSL2 after an error of the GPU",
        ("dxgkio_", "CUDA error: device not ready"),
        "In WSL2, run `wsl --shutdown` and `wsl --update`, and install the newest GPU driver. Elsewhere `dmesg` has "
        "the reason: reset the GPU or reboot.",
        where="hint",
    ),
    KnownCause(
        "no-pinned-memory",
        "the system gives vLLM no pinned memory, as in WSL or below a limit",
        ("UVA is not available", "OS call failed or operation not supported on this OS"),
        "Set VLLM_WSL2_ENABLE_PIN_MEMORY=1 with a new driver and WSL; or set VLLM_USE_V2_MODEL_RUNNER=0; or "
        "raise `ulimit -l` and free memory.",
    ),
    FORKED_DRIVER,
    KnownCause(
        "not-spawnable",
        "a process cannot be spawned from this Python program",
        ("No such file or directory: '…<stdin>'", "finished its bootstrapping phase"),
        "Put the program into a file, with the start of vLLM below if __name__ == '__main__'.",
    ),
    KnownCause(
        "illegal-memory-access",
        "a kernel accessed memory that is not its own",
        (
            "an illegal memory access was encountered",
            "device-side assert triggered",
            "`cudaErrorAssert'",
            "`cudaErrorIllegalAddress'",
            "unspecified launch failure",
            "misaligned address",
            "HSA_STATUS_ERROR_EXCEPTION",
            "Memory access fault by GPU",
            "gfxhub] page fault",
        ),
        "Try a newer vLLM, then --enforce-eager, another --attention-backend, and without speculative decoding; "
        "CUDA_LAUNCH_BLOCKING=1 names the kernel for a bug report.",
    ),
    KnownCause(
        "graph-capture-failed",
        "vLLM cannot capture this model's CUDA graphs",
        ("not permitted when stream is capturing", "StreamCaptureUnsupported'", "depend on a capturing blocking"),
        "--enforce-eager starts without graphs. To keep them: another release of vLLM, or without --speculative-config "
        "and other features that the traceback names.",
        phase=GRAPHS,
    ),
    KnownCause(
        "gpu-hardware-fault",
        "the GPU itself failed",
        (
            "uncorrectable ECC error encountered",
            "GPU has fallen off the bus",
            "GPU is lost",
            "uncorrectable NVLink error",
        ),
        "Look at `nvidia-smi -q` and the Xid lines of `dmesg`; drain the node, then reset or replace the GPU.",
    ),
    KnownCause(
        "gpu-error",
        "the GPU or its driver reported an error",
        (
            "CUDA error:",
            "CUDA driver error:",
            "HIP error:",
            "ACL stream synchronize failed",
            "The Inner error is reported as above",
            "call acl api failed",
            "Memory critical error by agent",
            "CUBLAS_STATUS_",
            "CUDNN_STATUS_",
        ),
        "CUDA_LAUNCH_BLOCKING=1 names the call; `nvidia-smi` and `dmesg` show whether the GPU is well; then try a "
        "newer driver or vLLM.",
        is_general=True,
    ),
)

KV_CACHE_BESIDE: Final = KnownCause(
    "kv-cache-beside-another",
    "the KV cache has no room beside another engine that this log shows",
    (),
    "Engines on one GPU share it: keep the sum of their --gpu-memory-utilization below 1, and start one "
    "after the other. Or give each a GPU of its own (CUDA_VISIBLE_DEVICES).",
    phase=KV_CACHE,
)
"""For an engine without room for its KV cache while another engine in the log has one. Has no texts."""

MEMORY: Final = (
    KV_CACHE_BESIDE,
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
        "the GPU has less free memory than --gpu-memory-utilization asks for",
        (
            "Free memory on device … less than desired GPU memory utilization",
            "Free memory on device … less than the engine's budget",
        ),
        "If `nvidia-smi` shows other processes, end them, also workers that a dead vLLM has left. If nearly all memory "
        "is free, only vLLM's own context (0.5 GiB) takes the rest: lower --gpu-memory-utilization.",
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
            "CUDA driver error: out of memory",
            "CUDA Error: out of memory",
            "HIP error: out of memory",
            "torch.OutOfMemoryError",
            "torch.cuda.OutOfMemoryError",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "Ran out of memory in memory space",
            "RESOURCE_EXHAUSTED",
            "UR_RESULT_ERROR_OUT_OF_RESOURCES",
            "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
            "nrt_tensor_allocate…Allocation Failure",
        ),
        "Lower --gpu-memory-utilization if it happens in graphs, compilation or requests; else --max-model-len, "
        "--max-num-seqs or --max-num-batched-tokens; or use a quantized model or --tensor-parallel-size.",
    ),
    KnownCause(
        "nccl-out-of-memory",
        "the GPU has no memory left for NCCL",
        ("Cuda failure … 'out of memory'", "HIP failure… 'out of memory'"),
        "`nvidia-smi` shows who holds the memory: end it, or lower --gpu-memory-utilization.",
        where="hint",
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
            "ggml_aligned_malloc: insufficient memory",
            "failed to allocate CPU buffer",
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
            "died with <Signals.SIGKILL",
            "exit code 137",
            "exited with code 137",
            "exitcode=-9",
            "is killed by signal: Killed",
        ),
        "`kubectl describe pod`, `docker inspect` or `dmesg` show whether it was the OOM killer: then raise the "
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
            "[Errno 14]…/dev/shm",
            "/dev/shm…[Errno 14]",
            "^OSError: [Errno 14] Bad address",
            "died with <Signals.SIGBUS",
        ),
        "Give docker run --ipc=host or --shm-size 8g; in Kubernetes mount an emptyDir, medium: Memory, at /dev/shm.",
        where="hint",
    ),
)
