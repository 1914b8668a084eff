"""Causes that say which part of vLLM failed, by the file of the frame that raised the exception.

The exception's message names no cause, so the advice is to search vLLM's issues for the message. If a flag
turns the failed part on, the advice is to start without this flag.
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
        "Start without --kv-transfer-config and --kv-offloading-size. If that works, use matching versions of vLLM and "
        "connector (newer for hybrid models). For NIXL, set UCX_LOG_LEVEL=info, and check RDMA and `ulimit -l`.",
        "NIXL_ERR_",
        " in _update_from_kv_xfer",
        "KV connector",
    ),
    _failed(
        "lora-failed",
        "an adapter does not fit the model, or vLLM's adapter code failed",
        ("/vllm/lora/",),
        "Start without --enable-lora. If that works, compare the adapter's base model and target modules with the "
        "model, merge the adapter, or use a newer vLLM.",
    ),
    _failed(
        "attention-failed",
        "vLLM's attention code failed",
        ("/attention/", "/flash_attn", "/vllm_flash_attn/", "/flashinfer/"),
        "Search vLLM's issues for the message. Try --attention-backend TRITON_ATTN with --kv-cache-dtype auto, then a "
        "newer vLLM.",
    ),
    _failed(
        "quantization-failed",
        "vLLM's quantization code failed",
        ("/quantization/", "/compressed_tensors/", "/bitsandbytes"),
        "Search vLLM's issues for the message. Try a newer vLLM, or the model with another quantization or none.",
    ),
    _failed(
        "speculative-decoding-failed",
        "speculative decoding failed",
        ("/spec_decode/", "speculative"),
        "Start without --speculative-config. If that works, try fewer num_speculative_tokens or a newer vLLM.",
    ),
    _failed(
        "structured-outputs-failed",
        "a request with structured outputs ended the engine",
        ("/structured_output/", "/xgrammar/", "/llguidance/", "/outlines"),
        "Choose another backend (--structured-outputs-config), or try a newer vLLM.",
    ),
    _failed(
        "moe-failed",
        "vLLM's mixture-of-experts code failed",
        ("/fused_moe/",),
        "Search vLLM's issues for the message. Try another --moe-backend, then a newer vLLM.",
    ),
    _failed(
        "model-failed",
        "vLLM's code for this model failed",
        ("/vllm/model_executor/", "/vllm/models/"),
        "Search vLLM's issues for the message and the model's name. Try a newer vLLM.",
    ),
    _failed(
        "transformers-failed",
        "code of transformers or of the model failed",
        ("/transformers/", "/transformers_modules/", "/transformers_utils/"),
        "Search the issues of transformers and vLLM for the message. Install the transformers that this vLLM or the "
        "model's page names.",
    ),
)
