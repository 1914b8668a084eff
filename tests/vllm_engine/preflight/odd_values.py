"""Values for `generated_starts`: a small model; oddities of files and flags."""

import json
from typing import Any, Final

TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
PLAIN: Final[dict[str, Any]] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 49152,
    "max_position_embeddings": 2048,
}  # fmt: skip
"""What vLLM needs in config.json."""


def as_json(content: Any) -> bytes:
    """A file's content."""
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
NUMBERS: Final = ("0", "1", "2", "-1", "0.5", "1.5", "1e3", "8k", "8K", "100000", "99", "nan", "inf", " 3", "0x10")
TEXTS: Final = (
    "auto", "None", "none", "", "x", "{}", '{"a": 1}', "[]", "[1]", "null", "true", "a=b", "1_0", '{"a"', "80g",
    "deep-gemm", "/tmp", "tcp://10.0.0.1:80",
)  # fmt: skip
YAML_VALUES: Final = (True, False, None, 1, 0.5, 8, "8k", [], ["a", "b"], {}, {"a": 1}, {"mode": 0})
FILE_FLAGS: Final = (
    "--chat-template", "--log-config-file", "--generation-config", "--tokenizer", "--hf-config-path",
    "--tool-parser-plugin", "--lora-modules",
)  # fmt: skip
FILES: Final = (*TOKENIZER, "chat_template.jinja", "preprocessor_config.json", "added_tokens.json", "vocab.json")
