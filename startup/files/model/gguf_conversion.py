"""Converts the default model's GGUF file to bf16 safetensors. Runs as a script in a process of its own.

The script's arguments are the file and the folder to write. numpy suffices for a Llama whose tensors have the
types F32, Q4_1 and Q8_0. transformers takes ten times as long: it imports torch, and builds the model.
"""

import json
import struct
import sys
from math import prod
from pathlib import Path
from typing import Any, Final

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The numbers of scalar types, with their formats for `struct`."""
_STRING: Final = 8
_LIST: Final = 9
_CONFIG: Final = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
"""Setting of config.json -> the file's name for it."""
_TENSORS: Final = {
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
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCKS: Final = {_F32: (1, 4), _Q4_1: (32, 20), _Q8_0: (32, 34)}
"""A type's number -> the weights in a block, and the block's bytes."""
_ALIGNMENT: Final = 32
_CONTROL: Final = 3
"""The type of a token that stands for no text."""


def convert(source: Path, target: Path) -> None:
    """Writes the GGUF model of the file `source`, and its tokenizer, into the folder `target`."""
    reader = _GgufReader(source.read_bytes())
    facts = reader.facts
    config = {name: facts[f"llama.{key}"] for name, key in _CONFIG.items()}
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {name: facts[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}
    token_ids = {f"{name}_token_id": number for name, number in ids.items() if name != "unk"}
    tokens = {f"{name}_token": facts["tokenizer.ggml.tokens"][number] for name, number in ids.items()}
    files = {
        "config.json": {**kind, **config, **token_ids, "tie_word_embeddings": True},
        "generation_config.json": token_ids,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **tokens},
    }
    target.mkdir()
    for name, fields in files.items():
        (target / name).write_text(json.dumps(fields, indent=2), encoding="utf-8")
    (target / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")
    _write_tokenizer(facts, target / "tokenizer.json")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    _write_weights(reader, heads, target / "model.safetensors")


def _write_tokenizer(facts: dict[str, Any], target: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(target))


def _write_weights(reader: "_GgufReader", heads: dict[str, int], target: Path) -> None:
    """Writes the tensors, whose descriptions follow the facts. `heads`: their number, where it matters."""
    tensors = {}
    for _ in range(struct.unpack_from("<Q", reader.content, 8)[0]):
        name, (num_lengths,) = reader.text(), reader.take("I")
        *lengths, kind, begin = reader.take(f"{num_lengths}QIQ")
        *block, own, _ = name.removeprefix("blk.").split(".")
        layer = ("layers", *block) if block else ()
        name = ".".join(("model", *layer, _TENSORS[own], "weight"))
        tensors[name] = (begin, kind, lengths[::-1], heads.get(own))
    header, end = {}, 0
    for name, (_, _, shape, _) in sorted(tensors.items()):
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    data = memoryview(reader.content)[-(-reader.place // _ALIGNMENT) * _ALIGNMENT :]
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, (begin, kind, shape, num_heads) in sorted(tensors.items()):
            file.write(_bfloat16(data[begin:], kind, shape, num_heads))


def _bfloat16(data: memoryview, kind: int, shape: list[int], num_heads: int | None) -> bytes:
    import numpy as np

    num_weights, num_bytes = _BLOCKS[kind]
    num_blocks = prod(shape) // num_weights
    blocks = np.frombuffer(data, np.uint8, num_blocks * num_bytes).reshape(-1, num_bytes)
    if kind == _F32:
        floats = blocks.view("<f4")
    else:
        scale, least = (blocks[:, at : at + 2].view("<f2").astype("<f4") for at in (0, 2))
        if kind == _Q8_0:
            floats = blocks[:, 2:].view("i1") * scale
        else:
            pairs = blocks[:, 4:]  # two weights of four bits in each byte
            floats = np.hstack((pairs & 15, pairs >> 4)) * scale + least
    # llama.cpp rotates pairs of neighbours, transformers the halves of a head
    rotated = floats.reshape(num_heads, -1, 2, shape[1]).swapaxes(1, 2) if num_heads else floats
    bits = np.ascontiguousarray(rotated).view("<u4")
    last_kept = bits >> 16 & 1  # rounds a half to the even neighbour
    rounded: bytes = ((bits + 0x7FFF + last_kept) >> 16).astype("<u2").tobytes()
    return rounded


class _GgufReader:
    """Reads a GGUF file from its beginning: first its facts."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 16
        """The place after what was read last."""
        self.facts: dict[str, Any] = {}
        for _ in range(self.take("Q")[0]):
            key, kind = self.text(), self.take("I")[0]
            self.facts[key] = self._read(*self.take("IQ")) if kind == _LIST else self._read(kind, 1)[0]

    def take(self, layout: str) -> tuple[Any, ...]:
        """The next values, in this layout of `struct`."""
        values = struct.unpack_from(f"<{layout}", self.content, self.place)
        self.place += struct.calcsize(f"<{layout}")
        return values

    def text(self) -> str:
        end = self.take("Q")[0] + self.place
        text, self.place = self.content[self.place : end].decode(), end
        return text

    def _read(self, kind: int, number: int) -> list[Any]:
        """The next values of one type. Numbers are read in one call: there may be one for each token."""
        if kind == _STRING:
            return [self.text() for _ in range(number)]
        return list(self.take(f"{number}{_SCALARS[kind]}"))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
