"""Causes in the lines of llama.cpp's server, which has no exceptions."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause

LLAMA_CPP: Final = (
    KnownCause(
        "llama-out-of-memory",
        "llama.cpp finds too little memory on the GPU",
        (
            "cudaMalloc failed: out of memory",
            "ErrorOutOfDeviceMemory",
            "failed to allocate compute",
            "failed to allocate buffer, size",
            "failed to allocate buffer for kv cache",
            ": failed to allocate … buffer of size",
            "error loading model: unable to allocate … buffer",
        ),
        "Use fewer layers on the GPU (-ngl, --n-cpu-moe), a smaller -c or quantization, a quantized KV cache (-ctk "
        "q8_0 -ctv q8_0), or end other programs on the GPU.",
        where="end",
    ),
    KnownCause(
        "llama-no-device",
        "llama.cpp sees fewer GPUs than its options ask for",
        ("invalid value for main_gpu", "available devices: 0"),
        "If llama.cpp sees no GPU, check the driver, the container's GPUs (--gpus all, --device) and whether this "
        "build supports them, or leave out -sm and -mg. With fewer GPUs, lower -mg (--main-gpu).",
        where="end",
    ),
    KnownCause(
        "llama-model-unknown",
        "this llama.cpp does not know the GGUF file's model",
        (
            "unknown model architecture: '",
            "unknown pre-tokenizer type",
            "wrong number of tensors",
            "error loading model: missing tensor",
            "key not found in model",
            "error loading model vocabulary",
            "has invalid ggml type",
            "error loading model: check_tensor_dims",
        ),
        "Use a newer llama.cpp, or a GGUF file that this release has converted.",
        where="end",
    ),
    KnownCause(
        "llama-model-damaged",
        "the GGUF file is missing, incomplete or in another format",
        (
            "data is not within the file bounds",
            "gguf_init_from_…: failed to",
            "gguf_init_from_…: invalid magic",
            "invalid split file",
            "failed to open GGUF file",
        ),
        "Check the path. Compare the file's size with the hub's, and copy it again if they differ. Keep all parts of a "
        "split model in one folder, and name the first.",
        where="end",
    ),
    KnownCause(
        "gguf-quantization-missing",
        "the repository has no GGUF file of this quantization",
        (
            "tag is not available in the repository",
            "no GGUF files found in repository",
            "GGUF files not found in",
            "Could not find GGUF file",
        ),
        "Name a quantization that the repository's page lists among its files, such as OWNER/MODEL-GGUF:Q4_K_M, "
        "spelled as there. vLLM serves a repository without .gguf files, by its name without `:`.",
        where="end",
    ),
    KnownCause(
        "llama-download-failed",
        "llama.cpp cannot download the model",
        ("get_repo_commit: error", "failed to download model from Hugging Face", "error from HF API"),
        "Check the name (-hf OWNER/MODEL:QUANTIZATION), HF_TOKEN, HF_ENDPOINT and the network. Or name a file with -m.",
        where="end",
    ),
    KnownCause(
        "llama-load-failed",
        "llama.cpp cannot load the model's file",
        ("error loading model", "failed to load model", "load_model: failed to load", "exiting due to"),
        "Read the reason in the message or the lines before it. Use the newest llama.cpp, a local disk and a path of "
        "plain letters. Compare the file's size with the hub's. Draft model and mmproj must be this model's.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "llama-context-failed",
        "llama.cpp cannot set up the model's context",
        ("llama_init_from_model: failed to",),
        "Correct the option that the message names (-fa, -ctv, -np, -c). If it names none, read the driver's reason in "
        "the lines before.",
        is_general=True,
    ),
    KnownCause(
        "llama-failed",
        "llama.cpp failed",
        (
            "GGML_ASSERT(",
            "ggml_abort",
            "ggml…: fatal error",
            "ggml_uncaught_exception",
            "llama-server process has terminated",
            "ggml-cuda.cu…CUDA error",
            "ggml-cuda.cu…ROCm error",
        ),
        "Read the lines before the message. If they have no reason, try the newest llama.cpp, then -ngl 0 without -fa.",
        where="end",
        is_general=True,
    ),
)
