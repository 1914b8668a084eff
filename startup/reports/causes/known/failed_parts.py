"""Parts of vLLM: their files, the settings that turn them on, and the causes that name them.

A part is recognized by the files in a traceback. The exception's message names no cause, so the advice is to
search vLLM's issues for the message, and to start without the settings in question.
"""

from typing import Final, NamedTuple

from startup.reports.causes.known_cause import KnownCause


class Part(NamedTuple):
    """A part of vLLM that settings turn on or choose."""

    files: tuple[str, ...]
    """Parts of the paths of its files."""
    settings: tuple[str, ...]
    """The arguments as vLLM's log names them, and beginnings of the names of variables."""
    words: tuple[str, ...] = ()
    """Words in an exception, or in the line that raised it, that also show this part."""
    known: KnownCause | None = None

    def has(self, file: str) -> bool:
        return any(each in file for each in self.files)


def _failed(name: str, title: str, part: Part, advice: str, *texts: str) -> Part:
    text = " | ".join((*(f"() of …{file}" for file in part.files), *texts))
    return part._replace(known=KnownCause(name, title, text, advice, is_general=True))


PARTS: Final = (
    _failed(
        "speculative-decoding-failed",  # vllm#36917
        "speculative decoding failed",
        Part(
            ("/spec_decode/", "speculat", "/eagle.", "_eagle", "/mtp", "_mtp.", "medusa", "dflash", "draft_model"),
            ("speculative_config", "speculative_model"),
            words=("spec_dec", "speculative", "num_accepted_tokens", "draft_", "_draft", "eagle"),
        ),
        "Start without --speculative-config. If that works, try fewer num_speculative_tokens or a newer vLLM.",
    ),
    _failed(
        "kv-connector-failed",  # vllm#33074
        "the connector that moves KV caches failed",
        Part(
            ("/kv_transfer/", "/kv_offload", "/lmcache/", "/nixl", "/mooncake"),
            ("kv_transfer_config", "kv_offloading_size", "kv_offloading_backend"),
        ),
        "Start without --kv-transfer-config and --kv-offloading-size. If that works, use matching versions of vLLM and "
        "connector (newer for hybrid models). For NIXL, set UCX_LOG_LEVEL=info, and check RDMA and `ulimit -l`.",
        "NIXL_ERR_",
        " in _update_from_kv_xfer",
        "KV connector",
    ),
    _failed(
        "lora-failed",  # vllm#16668
        "an adapter does not fit the model, or vLLM's adapter code failed",
        Part(("/vllm/lora/",), ("enable_lora", "lora_modules")),
        "Start without --enable-lora. If that works, compare the adapter's base model and target modules with the "
        "model, merge the adapter, or use a newer vLLM.",
    ),
    _failed(
        "quantization-failed",  # vllm#25527
        "vLLM's quantization code failed",
        Part(
            ("/quantization/", "/compressed_tensors/", "/bitsandbytes"),
            ("quantization", "VLLM_NVFP4_", "VLLM_MXFP4_", "VLLM_USE_DEEP_GEMM", "VLLM_USE_FLASHINFER_"),
            words=("bnb", "bitsandbytes"),
        ),
        "Search vLLM's issues for the message. Try a newer vLLM, or the model with another quantization or none.",
    ),
    _failed(
        "attention-failed",  # vllm#43562
        "vLLM's attention code failed",
        Part(
            ("/attention/", "/flash_attn", "/vllm_flash_attn/", "/flashinfer/", "/flashmla", "/mla/"),
            ("kv_cache_dtype", "attention_backend", "attention_config", "VLLM_ATTENTION_BACKEND", "VLLM_FLASH_ATTN_"),
            words=("kv-cache", "kv_cache_dtype", "kv cache dtype"),
        ),
        "Search vLLM's issues for the message. Try --attention-backend TRITON_ATTN with --kv-cache-dtype auto, then a "
        "newer vLLM.",
    ),
    _failed(
        "structured-outputs-failed",  # vllm#14534
        "a request with structured outputs ended the engine",
        Part(("/structured_output/", "/xgrammar/", "/llguidance/", "/outlines"), ("structured_outputs_config",)),
        "Choose another backend (--structured-outputs-config), or try a newer vLLM.",
    ),
    _failed(
        "moe-failed",  # vllm#7494
        "vLLM's mixture-of-experts code failed",
        Part(
            ("/fused_moe/",),
            (
                "moe_backend",
                "all2all_backend",
                "enable_eplb",
                "enable_expert_parallel",
                "VLLM_USE_FLASHINFER_MOE",
                "VLLM_ALL2ALL",
            ),
        ),
        "Search vLLM's issues for the message. Try another --moe-backend, then a newer vLLM.",
    ),
    Part(("/core/kv_cache", "/core/single_type"), ("disable_hybrid_kv_cache_manager", "enable_prefix_caching")),
    Part(("/executor/ray", "-packages/ray/"), ("distributed_executor_backend",)),
    Part(("/multimodal/", "/processing/"), ("mm_processor_kwargs", "limit_mm_per_prompt", "mm_encoder_tp_mode")),
    Part(("/tool_parsers/", "/tool_parser"), ("tool_parser_plugin", "tool_call_parser")),
    Part(("/reasoning/",), ("reasoning_parser_plugin", "reasoning_parser")),
    Part(("/offload", "/uva"), ("cpu_offload_gb", "offload_group_size")),
    Part(("/cumem", "sleep_mode"), ("enable_sleep_mode",)),
    Part(("ubatch", "/dbo"), ("enable_dbo",)),
    Part(("/pp_utils",), ("pipeline_parallel_size",), words=("intermediate_tensors",)),
    Part(("aiter",), ("VLLM_ROCM_USE_AITER",)),
    Part(("/worker/gpu/",), ("VLLM_USE_V2_MODEL_RUNNER",)),
    Part(("/models/transformers",), ("model_impl",)),
    Part(("/model_loader/",), ("load_format", "model_loader_extra_config")),
    Part(("/vllm/compilation/", "/_inductor/", "/_dynamo/"), ("compilation_config",)),
    _failed(
        "model-failed",  # vllm#16061
        "vLLM's code for this model failed",
        Part(("/vllm/model_executor/", "/vllm/models/"), ("hf_overrides",)),
        "Search vLLM's issues for the message and the model's name. Try a newer vLLM.",
    ),
    _failed(
        "transformers-failed",  # vllm#16292
        "code of transformers or of the model failed",
        Part(("/transformers/", "/transformers_modules/", "/transformers_utils/"), ("hf_overrides",)),
        "Search the issues of transformers and vLLM for the message. Install the transformers that this vLLM or the "
        "model's page names.",
    ),
)
"""In the order of comparison. The file of the frame that raised an exception decides, then outer frames."""
FAILED_PARTS: Final = tuple(part.known for part in PARTS if part.known)
