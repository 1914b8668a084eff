"""Causes about GPUs, their drivers and what they can compute."""

from typing import Final

from startup.causes.known_cause import KnownCause

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
        "The driver was updated while it was in use: reboot, or reload its modules.",
    ),
    KnownCause(
        "fabric-manager-missing",
        "the GPUs' NVSwitch fabric is not set up",
        ("system not yet initialized", "Error 802"),
        "Install and start nvidia-fabricmanager in the driver's version.",
    ),
    KnownCause(
        "no-device",
        "no GPU is visible",
        (
            "Failed to infer device type",
            "No CUDA GPUs are available",
            "Found no NVIDIA driver on your system",
            "Device string must not be empty",
            "no CUDA-capable device is detected",
            "libcuda.so.1: cannot open shared object file",
            "Can't initialize NVML",
            "NVML Shared Library Not Found",
        ),
        "docker run --gpus all, or nvidia.com/gpu in the pod's limits; check CUDA_VISIBLE_DEVICES; without a GPU, "
        "install vLLM for the CPU.",
    ),
    KnownCause(
        "container-without-gpus",
        "the container's runtime gives no GPUs to containers",
        (
            "could not select device driver",
            "nvidia-container-cli: ",
            "unknown or invalid runtime name: nvidia",
        ),
        "Install nvidia-container-toolkit on the host, run `nvidia-ctk runtime configure`, and restart Docker.",
        where="end",
    ),
    KnownCause(
        "too-few-gpus",
        "the flags ask for more GPUs than are visible",
        (
            "is larger than the number of available GPUs",
            "invalid device ordinal",
            "local_rank … is out of bounds for",
        ),
        "Lower --tensor-parallel-size, --pipeline-parallel-size or --data-parallel-size, or make more GPUs visible "
        "(CUDA_VISIBLE_DEVICES, the container's limits).",
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
        ),
        "Use a newer vLLM and torch for a new GPU, an older one for an old GPU, or build vLLM from source for it "
        "(TORCH_CUDA_ARCH_LIST).",
    ),
    KnownCause(
        "kernel-image-invalid",
        "Triton's compiler writes code that this driver does not read",
        ("device kernel image is invalid",),
        "Update the driver, or set TRITON_PTXAS_PATH to the ptxas of the CUDA version that the driver supports.",
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
        ),
        "Use a model with another quantization (AWQ and GPTQ run on older GPUs than FP8 and NVFP4), or a newer GPU; "
        "if the text names a dtype, --dtype half.",
    ),
    KnownCause(
        "gpu-too-old",
        "this GPU is too old for what the flags ask for",
        (
            "GPUs with compute capability below",
            "requires GPUs with sm",
            "only supports Ampere GPUs or newer",
            "No valid attention backend found",
            "is not valid for this configuration. Reason",
        ),
        "Leave out --attention-backend and --kv-cache-dtype, or use an older vLLM or a newer GPU.",
    ),
    KnownCause(
        "backend-unsupported",
        "the backend that a flag chooses does not compute this model",
        ("_backend=… is not supported for",),
        "Leave out --moe-backend and similar flags: vLLM chooses one that fits; or take one that the text names.",
    ),
    KnownCause(
        "deep-gemm-failed",
        "DeepGEMM cannot compute this model on this GPU",
        ("Unknown SF transformation",),
        "VLLM_USE_DEEP_GEMM=0, or a newer vLLM.",
    ),
    KnownCause(
        "no-pinned-memory",
        "vLLM needs pinned memory, which WSL does not always have",
        ("UVA is not available",),
        "Update Windows' driver and WSL; VLLM_USE_V2_MODEL_RUNNER=0 chooses the model runner that works without it.",
    ),
    KnownCause(
        "cuda-fork",
        "a process that already uses CUDA was forked",
        ("Cannot re-initialize CUDA in forked subprocess",),
        "VLLM_WORKER_MULTIPROC_METHOD=spawn; in Python code, put the call of LLM below if __name__ == '__main__'.",
    ),
    KnownCause(
        "illegal-memory-access",
        "a kernel accessed memory that is not its own",
        (
            "an illegal memory access was encountered",
            "device-side assert triggered",
            "unspecified launch failure",
            "misaligned address",
            "HSA_STATUS_ERROR_EXCEPTION",
            "Memory access fault by GPU",
        ),
        "Try a newer vLLM, then --enforce-eager, another --attention-backend, and without speculative decoding; "
        "CUDA_LAUNCH_BLOCKING=1 names the kernel for a bug report.",
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
        "`nvidia-smi -q` and the Xid lines of `dmesg`; drain the node, reset or replace the GPU.",
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
            "CUBLAS_STATUS_",
            "CUDNN_STATUS_",
        ),
        "CUDA_LAUNCH_BLOCKING=1 names the call; `nvidia-smi` and `dmesg` show whether the GPU is well; then try a "
        "newer driver or vLLM.",
        is_general=True,
    ),
)
