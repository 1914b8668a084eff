"""Causes in the lines of llama.cpp's server, which has no exceptions."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause

LLAMA_CPP: Final = (
    KnownCause(
        "llama-out-of-memory",  # llama.cpp#20431
        "llama.cpp finds too little memory on the GPU",
        "cudaMalloc failed: out of memory | ErrorOutOfDeviceMemory | failed to allocate compute | "
        "failed to allocate buffer, size | failed to allocate buffer for kv cache | "
        ": failed to allocate … buffer of size | error loading model: unable to allocate … buffer",
        "Use fewer layers on the GPU (-ngl, --n-cpu-moe), a smaller -c or quantization, a quantized KV cache (-ctk "
        "q8_0 -ctv q8_0), or end other programs on the GPU.",
        where="end",
    ),
    KnownCause(
        "llama-model-unknown",  # llama.cpp#21688
        "this llama.cpp does not know the GGUF file's model",
        "unknown model architecture: ' | unknown pre-tokenizer type | wrong number of tensors | "
        "error loading model: missing tensor | key not found in model | error loading model vocabulary | "
        "has invalid ggml type | error loading model: check_tensor_dims",
        "Use a newer llama.cpp, or a GGUF file that this release has converted.",
        where="end",
    ),
    KnownCause(
        "llama-model-damaged",  # llama.cpp#15919
        "the GGUF file is missing, incomplete or in another format",
        "data is not within the file bounds | gguf_init_from_…: failed to | gguf_init_from_…: invalid magic | "
        "invalid split file | failed to open GGUF file",
        "Check the path. Compare the file's size with the hub's, and copy it again if they differ. Keep all parts of a "
        "split model in one folder, and name the first.",
        where="end",
    ),
    KnownCause(
        "gguf-quantization-missing",  # llama.cpp#27201
        "the repository has no GGUF file of this quantization",
        "tag is not available in the repository | exactly one out metadata, path_model, and file | "
        "no GGUF files found in repository | GGUF files not found in | Could not find GGUF file",
        "Name a quantization that the repository's page lists among its files, such as OWNER/MODEL-GGUF:Q4_K_M, "
        "spelled as there. vLLM serves a repository without .gguf files, by its name without `:`.",
        where="end",
    ),
    KnownCause(
        "llama-load-failed",  # llama.cpp#15164
        "llama.cpp cannot load the model's file",
        "error loading model | failed to load model | load_model: failed to load | exiting due to",
        "Read the reason in the message or the lines before it. Use the newest llama.cpp, a local disk and a path of "
        "plain letters. Compare the file's size with the hub's. Draft model and mmproj must be this model's.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "llama-failed",  # llama.cpp#17071
        "llama.cpp failed",
        "GGML_ASSERT( | ggml_abort | ggml…: fatal error | ggml_uncaught_exception | "
        "llama-server process has terminated | ggml-cuda.cu…CUDA error | ggml-cuda.cu…ROCm error",
        "Read the lines before the message. If they have no reason, try the newest llama.cpp, then -ngl 0 without -fa.",
        where="end",
        is_general=True,
    ),
)
