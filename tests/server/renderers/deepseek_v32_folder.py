"""Saves a tiny tokenizer in DeepSeek-V3.2's format: byte-level BPE, its special tokens, no template."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MARKERS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜")

_WORDS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
_CORPUS = [
    "You have access to a set of tools you can use to answer the user's question.",
    'function_calls invoke name="get_weather" parameter string="true" string="false" function_results result',
    "Être ou ne pas être. Größe. Быстрая лиса. 你好，世界。今天天气很好。",
    "Reasoning about the weather in Paris, then in Berlin: 23 degrees, sunny.",
] * 4


def save_deepseek_v32(path: Path, **config: object) -> Path:
    """`config` changes config.json."""
    path.mkdir(parents=True)
    _tokenizer().save(str(path / "tokenizer.json"))
    named = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "clean_up_tokenization_spaces": False,
                "legacy": True,
                "model_max_length": 131072,
                "tokenizer_class": "LlamaTokenizerFast",
                "unk_token": None,
                **{role: {"__type": "AddedToken", "content": text, "normalized": True} for role, text in named.items()},
            }
        )
    )
    settings = {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", **config}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS + r"|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [BEGIN, END, PAD]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKERS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return tokenizer
