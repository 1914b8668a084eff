"""Causes about memory, and about GPUs, their drivers and the computations that they support."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.own_faults import FORKED_DRIVER
from startup.reports.causes.phase import GRAPHS, KV_CACHE

DEVICES: Final = (
    KnownCause(
        "ptx-too-new",  # vllm#31700
        "a kernel's code (PTX) is newer than the GPU's driver",
        "the provided PTX was compiled with an unsupported toolchain | ErrorUnsupportedPtxVersion",
        "Update the driver. On data center GPUs, set VLLM_ENABLE_CUDA_COMPATIBILITY=1 in vLLM's image, or put "
        "cuda-compat (/usr/local/cuda/compat) first in LD_LIBRARY_PATH. Or use a vLLM built for an older CUDA.",
    ),
    KnownCause(
        "cuda-compat-in-the-way",  # gpustack#4678
        "cuda-compat's driver library is loaded, and does not fit the driver or this GPU",
        "forward compatibility was attempted on non supported HW | "
        "system has unsupported display driver / cuda driver combination | Error 803 | Error 804",
        "Remove cuda-compat (/usr/local/cuda/compat) from LD_LIBRARY_PATH and /etc/ld.so.conf.d, so that the driver's "
        "own libcuda.so.1 is found, and unset VLLM_ENABLE_CUDA_COMPATIBILITY. If it fails again, update the driver.",
    ),
    KnownCause(
        "driver-too-old",  # vllm#1772
        "the GPU's driver is older than the CUDA version of this vLLM",
        "The NVIDIA driver on your system is too old | CUDA driver version is insufficient for CUDA runtime version",
        "Update the driver, or use a vLLM built for an older CUDA. On data center GPUs, cuda-compat also helps.",
    ),
    KnownCause(
        "driver-library-mismatch",  # vllm#29737
        "the NVIDIA driver and its library have different versions",
        "Driver/library version mismatch | NVMLError_LibRmVersionMismatch",
        "Reboot, or reload the driver's kernel modules, because the driver was updated.",
    ),
    KnownCause(
        "fabric-manager-missing",  # gpustack#1254
        "the GPUs' NVSwitch fabric is not set up",
        "system not yet initialized | Error 802",
        "Install and start nvidia-fabricmanager in the driver's version.",
    ),
    KnownCause(
        "unknown-device",  # vllm#41848
        "vLLM cannot read a GPU's or MIG instance's name in CUDA_VISIBLE_DEVICES",
        "invalid literal for int() with base 10: 'MIG- | invalid literal for int() with base 10: 'GPU- | "
        "NVMLError_NoPermission | NVMLError_InvalidArgument | NVMLError_NotFound",
        "Set CUDA_VISIBLE_DEVICES to numbers, such as 0, or use a newer vLLM. The container must see the slice "
        "(`nvidia-smi -L`). A recreated MIG instance has a new name.",
    ),
    KnownCause(
        "no-device",  # vllm#14954
        "no GPU is visible",
        "Failed to infer device type | No CUDA GPUs are available | No HIP GPUs are available | "
        "Found no NVIDIA driver on your system | Device string must not be empty | "
        "no CUDA-capable device is detected | libcuda.so.1: cannot open | Can't initialize NVML | "
        "NotImplementedError in …() of …/platforms/interface.py | NVML Shared Library Not Found | "
        "Device acquire failed",
        "Run `docker run --gpus all`, or set nvidia.com/gpu in the pod's limits. Check CUDA_VISIBLE_DEVICES. Without a "
        "GPU, install vLLM for the CPU.",
    ),
    KnownCause(
        "no-platform",  # vllm#16724
        "vLLM sees no GPU, and this build is not for the CPU",
        "No platform detected, vLLM is running on UnspecifiedPlatform",
        "Run `docker run --gpus all`, or set nvidia.com/gpu in the pod's limits. Install vLLM's build for GPU or CPU.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "container-without-gpus",  # nm-vllm#404
        "the container's runtime gives no GPUs to containers",
        "could not select device driver | nvidia-container-cli:  | unknown or invalid runtime name: nvidia | "
        "unresolvable CDI devices",
        "Install nvidia-container-toolkit on the host, run `nvidia-ctk runtime configure`, and restart Docker. For "
        "CDI, run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`.",
        where="end",
    ),
    KnownCause(
        "too-few-gpus",  # vllm#14263
        "the flags ask for more GPUs than are visible",
        "is larger than the number of available GPUs | invalid device ordinal | local_rank … is out of bounds for | "
        "local rank … is out of bounds for | device < num_gpus INTERNAL ASSERT FAILED",
        "Lower --tensor-parallel-size, --pipeline-parallel-size or --data-parallel-size, or show more GPUs in "
        "CUDA_VISIBLE_DEVICES or the container's limits.",
    ),
    KnownCause(
        "no-kernel-for-this-gpu",  # vllm#5198
        "this build has no code for this GPU",
        "no kernel image is available for execution on the device | invalid device function | "
        "hipErrorNoBinaryForGpu | is not compatible with the current PyTorch installation | "
        "is not implemented for Blackwell | Failed to initialize cutlass | No compiled …capability | "
        "No compiled …kernel | cutlass…, Error Internal | RuntimeError: Error Internal",
        "For a new GPU, use a newer vLLM and torch, for an old GPU older ones. Or build vLLM from source for this GPU "
        "(TORCH_CUDA_ARCH_LIST). With a quantization, try another one, or leave out --quantization.",
    ),
    KnownCause(
        "kernel-too-large",  # vllm#36802
        "a Triton kernel needs more shared memory than this GPU has",
        "out of resource: shared memory",
        "Use another --attention-backend, --kv-cache-dtype auto or a newer vLLM.",
    ),
    KnownCause(
        "kernel-image-invalid",  # vllm#41834
        "the compiled code is for another GPU or a newer driver",
        "device kernel image is invalid",
        "Use a build for this GPU (on AMD, its gfx number). Or update the driver, or set TRITON_PTXAS_PATH to the "
        "ptxas of a CUDA version that the driver supports.",
    ),
    KnownCause(
        "bfloat16-unsupported",  # vllm#946
        "this GPU cannot compute in bfloat16",
        "Bfloat16 is only supported on GPUs with compute capability of at least",
        "Set --dtype half.",
    ),
    KnownCause(
        "quantization-unsupported",  # vllm#14456
        "this GPU cannot compute the model's quantization",
        "is not supported for the current GPU. Minimum capability | Quantization scheme is not supported for | "
        "is not supported for quantization method | fp8e4nv not supported in this architecture | "
        "Failed to find a kernel that can implement the",
        "Use a newer GPU or another quantization. AWQ and GPTQ run on older GPUs than FP8 and NVFP4. Leave out "
        "--kv-cache-dtype. If the message names a dtype, set --dtype half.",
    ),
    KnownCause(
        "kv-cache-dtype-unsupported",  # vllm#55046
        "no attention kernel for this GPU reads this kind of KV cache",
        "No valid attention backend found…kv_cache_dtype not supported",
        "Set --kv-cache-dtype auto.",
    ),
    KnownCause(
        "attention-backend-missing",  # vllm#32732
        "no attention kernel computes this model on this GPU",
        "No valid attention backend found",
        "Read the reasons in the message. `compute capability` is about this GPU, `sparse` and `MLA` about the model, "
        "which may need a newer vLLM. Leave out flags that others name.",
    ),
    KnownCause(
        "nvcc-too-old",  # vllm#42393
        "nvcc, which compiles kernels, is older than this GPU",
        "FlashInfer requires GPUs with sm75 or higher | No supported CUDA architectures | Unsupported gpu architecture",
        "Install torch's CUDA toolkit (12.8 or newer for Blackwell), and set CUDA_HOME to it. Or avoid nvcc, also on "
        "GPUs before Turing, with VLLM_USE_FLASHINFER_SAMPLER=0 and another --attention-backend.",
    ),
    KnownCause(
        "gpu-too-old",  # vllm#1284
        "this GPU is too old for these flags",
        "GPUs with compute capability below | requires GPUs with sm | only supports Ampere GPUs or newer",
        "Leave out --attention-backend and --kv-cache-dtype, or use an older vLLM or a newer GPU.",
    ),
    KnownCause(
        "backend-unsupported",  # vllm#30214
        "the backend that a flag chooses does not compute this model",
        "_backend=… is not supported for | is not valid for this configuration. Reason | "
        "is not supported for vit attention | does not support the deployment configuration | "
        "explicitly requested moe_backend",
        "Leave out --attention-backend, --moe-backend and similar flags, also those in the message's reasons "
        "(kv_cache_dtype is --kv-cache-dtype).",
    ),
    KnownCause(
        "moe-backend-missing",  # flashinfer#3732
        "no mixture-of-experts kernel computes this model on this GPU",
        "MoE backend supports the deployment configuration",
        "Leave out --moe-backend, --enable-expert-parallel and VLLM_BATCH_INVARIANT. Or use a newer vLLM or another "
        "quantization.",
    ),
    KnownCause(
        "deep-gemm-failed",  # vllm#47436
        "DeepGEMM cannot compute this model on this GPU",
        "Unknown SF transformation | Assertion error (…gemm",
        "Set VLLM_USE_DEEP_GEMM=0, or use a newer vLLM.",
    ),
    KnownCause(
        "flashinfer-failed",  # vllm#49463
        "FlashInfer cannot compute this model on this GPU",
        "BatchPrefillWithPagedKVCache failed | BatchDecodeWithPagedKVCache failed",
        "Set --attention-backend TRITON_ATTN and VLLM_USE_FLASHINFER_SAMPLER=0, without --kv-cache-dtype fp8. Or "
        "install the FlashInfer that vLLM requires, with torch's CUDA toolkit.",
    ),
    KnownCause(
        "no-pinned-memory",  # vllm#43381
        "the system gives vLLM no pinned memory, because of WSL or a limit",
        "UVA is not available | OS call failed or operation not supported on this OS",
        "In WSL, update WSL and the driver, and set VLLM_WSL2_ENABLE_PIN_MEMORY=1. Elsewhere, raise `ulimit -l` and "
        "free memory. Or set VLLM_USE_V2_MODEL_RUNNER=0.",
    ),
    FORKED_DRIVER,
    KnownCause(
        "not-spawnable",  # vllm#5637
        "a process cannot be spawned from this Python program",
        "No such file or directory: '…<stdin>' | finished its bootstrapping phase",
        "Start vLLM in a file, below `if __name__ == '__main__'`.",
    ),
    KnownCause(
        "illegal-memory-access",  # vllm#19483
        "a kernel accessed memory that is not its own, or failed its own check",
        "an illegal memory access was encountered | device-side assert triggered | `cudaErrorAssert' | "
        "`cudaErrorIllegalAddress' | unspecified launch failure | misaligned address | HSA_STATUS_ERROR_EXCEPTION | "
        "Memory access fault by GPU | gfxhub] page fault",
        "Try a newer vLLM, --enforce-eager, another --attention-backend, no speculative decoding, in this order. For a "
        "bug report, set CUDA_LAUNCH_BLOCKING=1, which names the kernel.",
    ),
    KnownCause(
        "graph-capture-failed",  # vllm#10445
        "vLLM cannot capture this model's CUDA graphs",
        "not permitted when stream is capturing | StreamCaptureUnsupported' | depend on a capturing blocking",
        "Set --enforce-eager. To keep graphs, try another vLLM release, or leave out --speculative-config and other "
        "features in the traceback.",
        phase=GRAPHS,
    ),
    KnownCause(
        "gpu-hardware-fault",  # vllm#5222
        "the GPU itself failed",
        "uncorrectable ECC error encountered | GPU has fallen off the bus | GPU is lost | uncorrectable NVLink error",
        "Read `nvidia-smi -q` and `dmesg` (Xid). Drain the node, then reset or replace the GPU.",
    ),
    KnownCause(
        "gpu-error",  # vllm#10855
        "the GPU or its driver reported an error",
        "CUDA error: | CUDA driver error: | HIP error: | ACL stream synchronize failed | "
        "The Inner error is reported as above | call acl api failed | Memory critical error by agent | "
        "CUBLAS_STATUS_ | CUDNN_STATUS_",
        "Set CUDA_LAUNCH_BLOCKING=1, which names the call. Check the GPU with `nvidia-smi` and `dmesg`. Try a newer "
        "driver or vLLM.",
        is_general=True,
    ),
)

KV_CACHE_BESIDE: Final = KnownCause(
    "kv-cache-beside-another",  # own
    "the KV cache has no room beside another engine in this log",
    "",
    "Keep the sum of the engines' --gpu-memory-utilization below 1, and start one after the other. Or give each its "
    "own GPU (CUDA_VISIBLE_DEVICES).",
    phase=KV_CACHE,
)
"""Used if an engine has no room for its KV cache and the log has another engine with one. It has no texts."""

MEMORY: Final = (
    KV_CACHE_BESIDE,
    KnownCause(
        "kv-cache-too-small",  # Qwen3#295
        "the KV cache has no room for one request of --max-model-len tokens",
        "To serve at least one request with | "
        "is larger than the maximum number of tokens that can be stored in KV cache",
        "Lower --max-model-len (auto takes the longest that fits), raise --gpu-memory-utilization, set "
        "--kv-cache-dtype fp8, or use more GPUs (--tensor-parallel-size).",
        phase=KV_CACHE,
    ),
    KnownCause(
        "no-room-for-kv-cache",  # vllm#2248
        "weights and activations leave no memory for the KV cache",
        "No available memory for the cache blocks | Cannot auto-fit max_model_len: not enough",
        "Raise --gpu-memory-utilization, lower --max-num-batched-tokens or --max-num-seqs, quantize the model, or use "
        "more GPUs.",
        phase=KV_CACHE,
    ),
    KnownCause(
        "kv-cache-not-uniform",  # vllm#36388
        "the model needs several kinds of KV cache, and only one is allowed",
        "Hybrid KV cache manager is disabled but failed to convert",
        "Leave out --disable-hybrid-kv-cache-manager. With --kv-transfer-config, use a (newer) connector for hybrid "
        "models.",
    ),
    KnownCause(
        "gpu-memory-taken",  # vllm#20305
        "the GPU has less free memory than --gpu-memory-utilization asks for",
        "Free memory on device … less than desired GPU memory utilization | "
        "Free memory on device … less than the engine's budget",
        "End other processes (`nvidia-smi`), also workers of a dead vLLM, or lower --gpu-memory-utilization. If CPU "
        "and GPU share memory (GB10, Jetson), free the page cache first (`sync; echo 3 > /proc/sys/vm/drop_caches`).",
    ),
    KnownCause(
        "gpu-memory-changed",  # vllm#56830
        "the GPU's memory use changed while vLLM measured it",
        "Error in memory profiling",
        "Start a GPU's servers one after the other, once ended processes have freed their memory.",
    ),
    KnownCause(
        "gpu-out-of-memory",  # vllm#27508
        "the GPU has not enough memory",
        "CUDA out of memory | HIP out of memory | XPU out of memory | NPU out of memory | "
        "CUDA error: out of memory | CUDA driver error: out of memory | CUDA Error: out of memory | "
        "HIP error: out of memory | torch.OutOfMemoryError | torch.cuda.OutOfMemoryError | "
        "CUBLAS_STATUS_ALLOC_FAILED | Ran out of memory in memory space | RESOURCE_EXHAUSTED | "
        "UR_RESULT_ERROR_OUT_OF_RESOURCES | UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY | "
        "nrt_tensor_allocate…Allocation Failure",
        "If graphs, compilation or requests fail, lower --gpu-memory-utilization. Otherwise lower --max-model-len, "
        "--max-num-seqs or --max-num-batched-tokens, quantize the model, or use more GPUs (--tensor-parallel-size).",
    ),
    KnownCause(
        "gpu-memory-query-failed",  # vllm#9824
        "the GPU's memory is exhausted, or the container's driver does not answer",
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED | NvMapMemAlloc | NV_ERR_NO_MEMORY",
        "End processes that hold GPU memory (`nvidia-smi`). If CPU and GPU share memory, lower "
        "--gpu-memory-utilization and free the page cache. If `nvidia-smi` fails too, restart the container.",
    ),
    KnownCause(
        "host-out-of-memory",  # ollama#12634
        "the machine's memory is exhausted",
        "DefaultCPUAllocator: can't allocate memory | Cannot allocate memory | "
        "ggml_aligned_malloc: insufficient memory | failed to allocate CPU buffer | ^MemoryError$ | ^MemoryError: | "
        "Task was killed due to the node running low on memory | ray.exceptions.OutOfMemoryError | "
        "the engine ran out of memory (",
        "Raise the memory limit of the container or pod, lower --swap-space or --cpu-offload-gb, or run fewer "
        "processes here.",
    ),
    KnownCause(
        "killed-from-outside",  # own
        "another program or person killed a process",
        "SIGKILL, not by the kernel's OOM killer",
        "Find out who sent SIGKILL, such as an operator (`kill -9`), a job scheduler, earlyoom or systemd-oomd.",
        where="end",
    ),
    KnownCause(
        "oom-killed",  # own
        "the kernel killed a process because memory ran out",
        "SIGKILL, by the kernel's OOM killer | the kernel killed it because the memory of",
        "Raise the memory limit of the container or pod, lower VLLM_CPU_KVCACHE_SPACE, --cpu-offload-gb or "
        "--max-model-len, or run fewer processes here.",
        where="end",
    ),
    KnownCause(
        "process-killed",  # vllm#12245
        "a process was killed from outside, perhaps by the OOM killer",
        "^Killed$ |  Killed    | OOMKilled | oom-kill | Out of memory: Killed process | "
        "Memory cgroup out of memory | exit code: -9 | Failed core proc(s): …: -9 | died with exit code -9 | "
        "died with <Signals.SIGKILL | exit code 137 | exited with code 137 | exitcode=-9 | "
        "is killed by signal: Killed | killed by SIGKILL | ended by SIGKILL | killed by signal 9",
        "Check with `kubectl describe pod`, `docker inspect` or `dmesg` whether it was the OOM killer. If so, raise "
        "the memory limit. Loading also needs memory for the largest weights file.",
        where="end",
    ),
    KnownCause(
        "shm-too-small",  # vllm#1710
        "/dev/shm is too small",
        "Insufficient space in /dev/shm | Error while creating shared memory segment | "
        "unable to open shared memory object | Bus error | unable to mmap … /dev/shm | "
        "exit code: -7 | [Errno 14]…/dev/shm | /dev/shm…[Errno 14] | "
        "^OSError: [Errno 14] Bad address | died with <Signals.SIGBUS | killed by SIGBUS | crashed with SIGBUS",
        "Run `docker run` with --ipc=host or --shm-size 8g. In Kubernetes, mount an emptyDir with `medium: Memory` at "
        "/dev/shm.",
        where="hint",
    ),
)
