"""Causes that show only in the file of the frame that raised an exception: which part of vLLM failed.

The message names no cause, so the advice is to search for it. A feature that a flag turns on can be left out.
"""

from typing import Final

from startup.reports.causes.known_cause import KnownCause


def _failed(name: str, title: str, files: tuple[str, ...], advice: str, *texts: str) -> KnownCause:
    return KnownCause(name, title, (*(f"() of …{file}" for file in files), *texts), advice, is_general=True)


FAILED_PARTS: Final = (
    _failed(
        "kv-connector-failed",
        "the connector that moves KV caches failed",
        ("/kv_transfer/", "/kv_offload", "/lmcache/", "/nixl", "/mooncake"),
        "Start without --kv-transfer-config and --kv-offloading-size. If that works, use vLLM and connector in "
        "matching versions, newer ones for hybrid models; for NIXL check UCX_LOG_LEVEL=info, RDMA and `ulimit -l`.",
        "NIXL_ERR_",
        " in _update_from_kv_xfer",
        "KV connector",
    ),
    _failed(
        "lora-failed",
        "an adapter does not fit the model, or vLLM's code for adapters failed",
        ("/vllm/lora/",),
        "Start without --enable-lora. If that works: compare the adapter's base model and target modules with this "
        "model, merge the adapter into it, or use a newer vLLM.",
    ),
    _failed(
        "attention-failed",
        "vLLM's code for attention failed",
        ("/attention/", "/flash_attn", "/vllm_flash_attn/", "/flashinfer/"),
        "Search vLLM's issues for this line. Another --attention-backend (TRITON_ATTN) and --kv-cache-dtype auto show "
        "whether the kernel is at fault; else try a newer vLLM.",
    ),
    _failed(
        "quantization-failed",
        "vLLM's code for the model's quantization failed",
        ("/quantization/", "/compressed_tensors/", "/bitsandbytes"),
        "Search vLLM's issues for this line; try a newer vLLM, or the model with another quantization or without one.",
    ),
    _failed(
        "speculative-decoding-failed",
        "speculative decoding failed",
        ("/spec_decode/", "speculative"),
        "Start without --speculative-config; if that works, try fewer num_speculative_tokens or a newer vLLM.",
    ),
    _failed(
        "structured-outputs-failed",
        "a request with structured outputs ended the engine",
        ("/structured_output/", "/xgrammar/", "/llguidance/", "/outlines"),
        "Choose another backend (--structured-outputs-config), or try a newer vLLM.",
    ),
    _failed(
        "moe-failed",
        "vLLM's code for mixtures of experts failed",
        ("/fused_moe/",),
        "Search vLLM's issues for this line. Another --moe-backend shows whether the kernel is at fault; else try "
        "a newer vLLM.",
    ),
    _failed(
        "model-failed",
        "vLLM's code for this model failed",
        ("/vllm/model_executor/", "/vllm/models/"),
        "Search vLLM's issues for this line and the model's name; then try a newer vLLM.",
    ),
    _failed(
        "transformers-failed",
        "code of transformers or of the model failed",
        ("/transformers/", "/transformers_modules/", "/transformers_utils/"),
        "Search the issues of transformers and vLLM for this line. Install the transformers that this vLLM needs, or "
        "that the model's page names.",
    ),
)
