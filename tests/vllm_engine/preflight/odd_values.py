"""Values for `generated_starts`: configurations of small models, odd values of fields, files and flags."""

import json
from typing import Any, Final

TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_SIZES: Final = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 2048,
}  # fmt: skip
_OLD_SIZES: Final = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048, "vocab_size": 49152}
CODE: Final = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}


def _of(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **_SIZES, **more}


def _old(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **_OLD_SIZES, **more}


FAMILIES: Final[tuple[dict[str, Any], ...]] = (
    _of("llama", "LlamaForCausalLM"),
    _of("llama", "LlamaForCausalLM", torch_dtype="bfloat16", rope_theta=500000.0),
    _of("mistral", "MistralForCausalLM", sliding_window=1024),
    _of("qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=512, max_window_layers=1),
    _of("qwen3", "Qwen3ForCausalLM", head_dim=16, dtype="bfloat16"),
    _of("qwen2_moe", "Qwen2MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64),
    _of("mixtral", "MixtralForCausalLM", num_local_experts=4),
    _of("gemma2", "Gemma2ForCausalLM", head_dim=16, sliding_window=1024),
    _of("gemma3_text", "Gemma3ForCausalLM", head_dim=16, sliding_window=512),
    _of("phi3", "Phi3ForCausalLM", original_max_position_embeddings=1024, pad_token_id=0),
    _of("phi", "PhiForCausalLM", partial_rotary_factor=0.5),
    _of("granite", "GraniteForCausalLM"),
    _of("cohere", "CohereForCausalLM", model_max_length=4096),
    _of("opt", "OPTForCausalLM", ffn_dim=128, word_embed_proj_dim=64),
    _of("gpt_neox", "GPTNeoXForCausalLM"),
    _of("falcon", "FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2),
    _of("bert", "BertModel", max_position_embeddings=512),
    _of("roberta", "RobertaForSequenceClassification", max_position_embeddings=514, pad_token_id=1),
    _of("mamba", "MambaForCausalLM", state_size=16),
    _of("deepseek_v3", "DeepseekV3ForCausalLM", kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16),
    _of("kimi_k2", "DeepseekV3ForCausalLM", kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16, auto_map=CODE),
    _of("chatglm", "ChatGLMModel", seq_length=2048, auto_map=CODE, multi_query_group_num=2, num_layers=2),
    _of("gpt_oss", "GptOssForCausalLM", head_dim=16, num_local_experts=4, sliding_window=128),
    _old("gpt2", "GPT2LMHeadModel", n_ctx=2048),
    _old("gpt_bigcode", "GPTBigCodeForCausalLM"),
    _old("gptj", "GPTJForCausalLM", rotary_dim=16),
    _old("bloom", "BloomForCausalLM", hidden_size=64, seq_length=2048),
    _old("RefinedWeb", "FalconForCausalLM", hidden_size=64, auto_map=CODE, alibi=False, n_head_kv=2),
    _old("RefinedWebModel", "FalconForCausalLM", hidden_size=64, auto_map=CODE, alibi=False, multi_query=True),
    {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": dict(_SIZES)},
    {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], **_SIZES},
    {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": {
        "model_type": "llama", **_SIZES}, "vision_config": {"model_type": "clip_vision_model"}},
    {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 64,
     "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2,
     "max_source_positions": 1500, "max_target_positions": 448, "num_mel_bins": 80},
)  # fmt: skip
"""The fields of config.json that vLLM needs to make its configuration for these models."""
PLAIN: Final = FAMILIES[0]


def as_json(content: Any) -> bytes:
    """The content of a JSON file."""
    return json.dumps(content).encode()


def _safetensors(dtype: str = "F32", size: int = 16, shape: tuple[int, ...] = (4,), begin: int = 0) -> bytes:
    header = as_json({"a": {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}})
    return len(header).to_bytes(8, "little") + header + bytes(begin + size)


WEIGHTS: Final = _safetensors()
ALL_WEIGHTS: Final = (
    WEIGHTS, WEIGHTS[:-1], WEIGHTS[:20], WEIGHTS[:4], WEIGHTS + b"x", b"x" * 100, b"{}",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n",
    _safetensors("BF16", 8), _safetensors("F8_E4M3", 4), _safetensors("F4", 2), _safetensors("F6_E2M3", 3),
    _safetensors("F32", 8), _safetensors("X32"), _safetensors(begin=4), _safetensors(shape=()),
    _safetensors(size=0, shape=(0,)),
    (2).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"{}  ", (2).to_bytes(8, "little") + b"[]",
    b"PK\x03\x04" + b"x" * 100, b"\x80\x02}q\x00.",
)  # fmt: skip
WEIGHT_NAMES: Final = (
    "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "weights.safetensors",
    "consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin",
    "training_args.bin", "model.pt", "model.gguf", "sub/model.safetensors", "optimizer.pt",
)  # fmt: skip
LOADS: Final = (
    ["--load-format", "safetensors"], ["--load-format", "pt"], ["--load-format", "dummy"], ["--load-format", "hf"],
    ["--load-format", "mistral"], ["--load-format", "npcache"], ["--load-format", "sharded_state"],
    ["--ignore-patterns", "model*"], ["--safetensors-load-strategy", "eager"], ["--load-format", "gguf"],
    ["--model-loader-extra-config", '{"enable_multithread_load": true}'],
)  # fmt: skip
NOT_GENERATED: Final = ("--help", "--version", "--config", "--model", "--port", "--middleware", "--logits-processors")
LENGTH_KEYS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx", "seq_len",
    "model_max_length", "max_seq_length", "max_target_positions", "original_max_position_embeddings",
)  # fmt: skip
LENGTH_FLAGS: Final = (
    ["--runner", "pooling"], ["--convert", "embed"], ["--disable-sliding-window"], ["--skip-tokenizer-init"],
    ["--config-format", "hf"], ["--tokenizer", "{folder}"], ["--trust-remote-code"], ["--model-impl", "transformers"],
    ["--hf-overrides", '{"max_position_embeddings": 9000}'], ["--dtype", "float32"],
)  # fmt: skip
ARCHITECTURES: Final = (
    "LlamaModel", "OwnForCausalLM", "LlamaForSequenceClassification", "LlamaForTokenClassification", "MistralModel",
    "Qwen2ForRewardModel", "GemmaForSequenceClassification", "LlamaForQuestionAnswering", "GPT2DoubleHeadsModel",
    "T5ForConditionalGeneration", "",
)  # fmt: skip
ARCHITECTURE_FLAGS: Final = (
    ["--model-impl", "auto"], ["--model-impl", "vllm"], ["--model-impl", "transformers"],
    ["--hf-overrides", '{"architectures": ["LlamaForCausalLM"]}'], ["--runner", "pooling"], ["--convert", "classify"],
)  # fmt: skip
ROPES: Final = (
    "linear", "dynamic", "yarn", "llama3", "longrope", "su", "default", "mrope", "deepseek_yarn", "proportional",
    "mllama4", "ntk", "deepseek_llama_scaling", "fourier", "",
)  # fmt: skip
ROPE_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "su": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256},
    "mrope": {"mrope_section": [2, 3, 3]},
}
"""Kind of RoPE -> parameters that this kind requires."""
FURTHER_METHODS: Final = ("compressed_tensors", "compressed-tensors", "nofp2", "autoround", "auto-round", "FP8", "")
QUANTIZATIONS: Final[tuple[dict[str, Any], ...]] = (
    {"bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    {"bits": 8, "group_size": -1, "desc_act": True, "sym": True, "checkpoint_format": "marlin"},
    {"activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    {"config_groups": {}, "format": "pack-quantized"},
    {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
    {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
    {"producer": {"name": "other"}},
    {"quantization": {"quant_algo": "FP8"}},
    {"quant_algo": "FP8"},
    {"load_in_8bit": True},
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"packing_format": "auto_round:auto_gptq", "backend": "auto", "bits": 4, "group_size": 128, "sym": True},
    {"modules_to_not_convert": []},
)
BOOLEANS: Final = ("1", "0", "true", "True", "TRUE", "false", " 1 ", "yes", "on", "", "2")
NUMBERS: Final = ("0", "1", "2", "-1", "0.5", "1.5", "1e3", "8k", "8K", "100000", "99", "nan", "inf", " 3", "0x10")
TEXTS: Final = (
    "auto", "None", "none", "", "x", "{}", '{"a": 1}', "[]", "[1]", "null", "true", "a=b", "1_0", '{"a"', "80g",
    "deep-gemm", "/tmp", "tcp://10.0.0.1:80",
)  # fmt: skip
YAML_VALUES: Final = (True, False, None, 1, 0.5, 8, "8k", [], ["a", "b"], {}, {"a": 1}, {"mode": 0})
LIMITED: Final = (
    "--max-num-batched-tokens", "--max-num-seqs", "--max-model-len", "--enable-chunked-prefill", "--max-loras",
    "--max-cpu-loras", "--enable-lora", "--grpc", "--grpc-port", "--headless", "--api-server-count", "--nnodes",
    "--node-rank", "--data-parallel-rank", "--data-parallel-external-lb", "--data-parallel-hybrid-lb",
    "--data-parallel-multi-port-external-lb", "--data-parallel-start-rank", "--data-parallel-size",
    "--enable-auto-tool-choice", "--tool-call-parser", "--enable-log-outputs", "--enable-log-requests",
    "--disable-log-stats", "--enable-per-request-metrics", "--sse-keep-alive-interval", "--spec-method",
    "--spec-tokens", "--speculative-config", "--max-lora-rank", "--lora-modules", "--block-size",
)  # fmt: skip
NAMED: Final = (
    "--tool-call-parser", "--reasoning-parser", "--load-format", "--quantization", "--attention-backend",
    "--config-format", "--tokenizer-mode",
)  # fmt: skip
FILE_FLAGS: Final = (
    "--chat-template", "--log-config-file", "--generation-config", "--tokenizer", "--hf-config-path",
    "--tool-parser-plugin", "--lora-modules",
)  # fmt: skip
FILES: Final = (*TOKENIZER, "chat_template.jinja", "preprocessor_config.json", "added_tokens.json", "vocab.json")
