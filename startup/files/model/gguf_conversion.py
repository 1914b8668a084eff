"""Converts the default model's GGUF file to bf16 safetensors. Runs as a script in a process of its own.

The script's arguments are the file and the folder to write. numpy suffices for a Llama whose tensors have the
types F32, Q4_1 and Q8_0. transformers takes ten times as long: it imports torch, and builds the model.
"""

import json
import struct
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[3]))

from startup.files.model.gguf import read_facts, read_string

_NAMES: Final = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_F32: Final = 0
_Q4_1: Final = 3
_Q8_0: Final = 8
_BLOCKS: Final = {_F32: (1, 4), _Q4_1: (32, 20), _Q8_0: (32, 34)}
"""A type's number -> the weights in a block, and the block's bytes."""
_ALIGNMENT: Final = 32
_CONTROL: Final = 3
"""The type of a token that stands for no text."""


class _Tensor(NamedTuple):
    shape: list[int]
    kind: int
    place: int
    """The place of its data in the file's data."""
    num_heads: int
    """0 for a tensor that is not divided into heads."""

    @property
    def size(self) -> int:
        return prod(self.shape)


def convert(source: Path, target: Path) -> None:
    """Writes the GGUF model of the file `source`, and its tokenizer, into the folder `target`."""
    content = source.read_bytes()
    facts: dict[str, Any] = {}
    place = read_facts(content, facts)
    target.mkdir()
    _write_weights(content, place, facts, target / "model.safetensors")
    token_ids = {
        f"{name}_token": facts[f"tokenizer.ggml.{key}_token_id"]
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
    }
    tokens = facts["tokenizer.ggml.tokens"]
    files = {
        "config.json": {**_config(facts), **{f"{name}_id": each for name, each in token_ids.items()}},
        "generation_config.json": {f"{name}_id": each for name, each in token_ids.items() if name != "unk_token"},
        "tokenizer.json": _tokenizer(facts),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: tokens[each] for name, each in token_ids.items()},
        },
    }
    for name, fields in files.items():
        (target / name).write_text(json.dumps(fields, indent=2, ensure_ascii=False), encoding="utf-8")
    (target / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")


def _config(facts: Mapping[str, Any]) -> dict[str, Any]:
    def of(key: str) -> Any:
        return facts[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": of("vocab_size"),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "tie_word_embeddings": True,
    }


def _tokenizer(facts: Mapping[str, Any]) -> dict[str, Any]:
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bytes_of_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": True}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL
        ],
        "pre_tokenizer": bytes_of_text,
        "decoder": bytes_of_text,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]],
        },
    }


def _write_weights(content: bytes, place: int, facts: Mapping[str, Any], target: Path) -> None:
    """Writes the tensors whose descriptions begin at `place`."""
    tensors: dict[str, _Tensor] = {}
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    for _ in range(struct.unpack_from("<Q", content, 8)[0]):
        name, place = read_string(content, place)
        (num_lengths,) = struct.unpack_from("<I", content, place)
        *lengths, kind, begin = struct.unpack_from(f"<{num_lengths}QIQ", content, place + 4)
        place += 16 + 8 * num_lengths
        *block, own, _ = name.removeprefix("blk.").split(".")
        name = ".".join(("model", *(("layers", *block) if block else ()), _NAMES[own], "weight"))
        tensors[name] = _Tensor(lengths[::-1], kind, begin, heads.get(own, 0))
    header, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [end, end := end + 2 * tensor.size]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    data = memoryview(content)[-(-place // _ALIGNMENT) * _ALIGNMENT :]
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(_bfloat16(data, tensor))


def _bfloat16(data: memoryview, tensor: _Tensor) -> bytes:
    import numpy as np

    weights, num_bytes = _BLOCKS[tensor.kind]
    count = tensor.size // weights * num_bytes
    blocks = np.frombuffer(data, np.uint8, count, tensor.place).reshape(-1, num_bytes)
    if tensor.kind == _F32:
        floats = blocks.view("<f4")
    else:
        scale, least = (blocks[:, at : at + 2].view("<f2").astype("<f4") for at in (0, 2))
        if tensor.kind == _Q8_0:
            floats = blocks[:, 2:].view("i1") * scale
        else:
            floats = np.hstack((blocks[:, 4:] & 15, blocks[:, 4:] >> 4)) * scale + least
    if tensor.num_heads:  # llama.cpp rotates pairs of neighbours, transformers the halves of a head
        floats = floats.reshape(tensor.num_heads, -1, 2, tensor.shape[1]).swapaxes(1, 2)
    bits = np.ascontiguousarray(floats).view("<u4")
    rounded: bytes = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return rounded


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
