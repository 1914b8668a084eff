"""A cache of the Hugging Face hub with local models under the names that vLLM's tests use.

If tests depend on a model's text, the model is SmolLM2-135M-Instruct with a chat template for tools and
thinking. All other models have random weights in the architecture of the original. vLLM, transformers and
this program find models, tokenizers and LoRA adapters by name, without a network.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_REVISION: Final = "0" * 40
_TEMPLATES: Final = Path(__file__).parent / "templates"
_VOCAB_SIZE: Final = 49152
"""The vocabulary size of SmolLM2's tokenizer."""
_THINKING: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Tokens that replace the tokens from id 3 on. SmolLM2 does not use these ids in chats."""
_BERT: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_XLM: Final = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

Build = Callable[[Path, Path], None]
"""A function that writes a model into a folder. Its second argument is SmolLM2-135M-Instruct's folder."""


def prepare_models(hub: Path, smollm: Path) -> None:
    """Writes the models that are missing in the hub's cache."""
    for name, build in MODELS.items():
        repository = hub / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / _REVISION
        if snapshot.exists():
            continue
        unfinished = repository / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        build(unfinished, smollm)
        snapshot.parent.mkdir(exist_ok=True)
        unfinished.rename(snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(_REVISION)


def _chat(template: str, max_new_tokens: int = 512) -> Build:
    """SmolLM2-135M-Instruct itself, with another chat template and tokens for thinking and tool calls.

    `max_new_tokens` applies to tests that set no limit. The small model could write thousands of tokens.
    """

    def build(folder: Path, smollm: Path) -> None:
        settings = {
            "config": {"max_position_embeddings": 40960},
            "generation_config": {"max_new_tokens": max_new_tokens},
        }
        for name, changed in settings.items():
            given = json.loads((smollm / f"{name}.json").read_text())
            (folder / f"{name}.json").write_text(json.dumps(given | changed))
        os.link(_linkable(smollm / "model.safetensors", folder), folder / "model.safetensors")
        _save_tokenizer(folder, smollm, {3 + index: token for index, token in enumerate(_THINKING)})
        shutil.copyfile(_TEMPLATES / template, folder / "chat_template.jinja")

    return build


def _linkable(weights: Path, folder: Path) -> Path:
    """A copy of the weights in the cache. The weights of SmolLM2's variants are hard links to this copy."""
    copy = folder.parents[1] / "smollm.safetensors"
    if not copy.exists():
        unfinished = copy.with_suffix(".unfinished")
        shutil.copyfile(weights, unfinished)
        unfinished.rename(copy)
    return copy


def _causal(model_type: str, **options: Any) -> Build:
    """A language model with random weights, and with SmolLM2's tokenizer and chat template."""

    def build(folder: Path, smollm: Path) -> None:
        from transformers import AutoModelForCausalLM

        common = {"vocab_size": _VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        _save(folder, AutoModelForCausalLM, model_type, common | options)
        _save_tokenizer(folder, smollm, {})
        shutil.copyfile(smollm / "chat_template.jinja", folder / "chat_template.jinja")

    return build


def _encoder(
    model_type: str,
    vocab_size: int,
    hidden_size: int,
    *,
    pooling: str | None = None,
    num_labels: int | None = None,
    max_seq_length: int = 512,
    tokenizer: str | None = None,
) -> Build:
    """A BERT or XLM-RoBERTa with two layers. With labels it is a classifier, else a sentence transformer.

    The tokenizer has the special tokens of the model type, or of the type that `tokenizer` names.
    """

    def build(folder: Path, smollm: Path) -> None:
        from transformers import AutoModel, AutoModelForSequenceClassification

        is_bert = model_type == "bert"
        options = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512 if is_bert else 514,
            "type_vocab_size": 2 if is_bert else 1,
            "pad_token_id": 0 if is_bert else 1,
            "initializer_range": 0.1,
            "position_embedding_type": "absolute",
        }
        if num_labels is None:
            _save(folder, AutoModel, model_type, options)
        else:
            _save(folder, AutoModelForSequenceClassification, model_type, options | {"num_labels": num_labels})
        pair_of = tokenizer or model_type
        _save_tokenizer(folder, smollm, dict(enumerate(_BERT if pair_of == "bert" else _XLM)), pair_of=pair_of)
        if pooling is not None:
            _save_sentence_files(folder, pooling, hidden_size, max_seq_length)

    return build


_LLAMA_SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
"""Each attention head has 32 numbers, because vLLM's attention on CPUs has no kernel for smaller heads."""


def _classifier(folder: Path, smollm: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    options = {
        "vocab_size": 151936,
        **_LLAMA_SHAPE,
        "pad_token_id": 2,
        "initializer_range": 0.1,
        "id2label": {0: "Default", 1: "Spoiled"},
        "label2id": {"Default": 0, "Spoiled": 1},
    }
    _save(folder, AutoModelForSequenceClassification, "qwen2", options)
    _save_tokenizer(folder, smollm, {})
    shutil.copyfile(smollm / "chat_template.jinja", folder / "chat_template.jinja")


def _colbert(folder: Path, smollm: Path) -> None:
    """BERT with a linear layer to 96 numbers per token, like answerai-colbert-small."""
    import torch
    from safetensors.torch import load_file, save_file

    _encoder("bert", _VOCAB_SIZE, 384)(folder, smollm)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(96, 384) * 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(config))


def _lora(base: str, rank: int = 8, **shape: int) -> Build:
    """A LoRA adapter for SmolLM2's projections, or for a model with another shape, as PEFT writes it."""

    def build(folder: Path, smollm: Path) -> None:
        import torch
        from safetensors.torch import save_file

        sizes = {"hidden": 576, "keys": 192, "layers": 30} | shape
        torch.manual_seed(0)
        weights = {}
        prefix = "base_model.model.model.decoder.layers" if "opt" in base else "base_model.model.model.layers"
        for layer in range(sizes["layers"]):
            for projection, width in (("q_proj", sizes["hidden"]), ("v_proj", sizes["keys"])):
                name = f"{prefix}.{layer}.self_attn.{projection}"
                weights[f"{name}.lora_A.weight"] = torch.randn(rank, sizes["hidden"]) * 0.05
                weights[f"{name}.lora_B.weight"] = torch.randn(width, rank) * 0.05
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "bias": "none",
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj", "v_proj"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))

    return build


def _save(folder: Path, auto: Any, model_type: str, options: dict[str, Any]) -> None:
    """Saves the model in bfloat16, because the original's large vocabulary makes even a small model large."""
    import torch
    from transformers import CONFIG_MAPPING

    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**options)
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _save_tokenizer(folder: Path, smollm: Path, renamed: dict[int, str], *, pair_of: str | None = None) -> None:
    """Saves SmolLM2's tokenizer with other special tokens. An encoder puts two of them around each text."""
    tokenizer = json.loads((smollm / "tokenizer.json").read_text())
    settings = json.loads((smollm / "tokenizer_config.json").read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512 if pair_of else 8192,
    }
    for token in tokenizer["added_tokens"]:
        if new := renamed.get(token["id"]):
            del tokenizer["model"]["vocab"][token["content"]]
            tokenizer["model"]["vocab"][new] = token["id"]
            token |= {"content": new, "special": pair_of is not None}
    if pair_of is not None:
        is_bert = pair_of == "bert"
        places = (2, 3, 0, 1, 4) if is_bert else (0, 2, 1, 3, 4)
        start, end, pad, unknown, mask = (renamed[place] for place in places)
        settings |= {"cls_token": start, "sep_token": end, "pad_token": pad, "unk_token": unknown, "mask_token": mask}
        settings |= {"bos_token": start, "eos_token": end}
        tokenizer["post_processor"] = _post_processor(start, end, is_bert, {v: k for k, v in renamed.items()})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _post_processor(start: str, end: str, is_bert: bool, ids: dict[str, int]) -> dict[str, Any]:
    def special(token: str, type_id: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    second = 1 if is_bert else 0
    single = [special(start), {"Sequence": {"id": "A", "type_id": 0}}, special(end)]
    between = [] if is_bert else [special(end)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *between, {"Sequence": {"id": "B", "type_id": second}}, special(end, second)],
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (start, end)},
    }


def _save_sentence_files(folder: Path, pooling: str, hidden_size: int, max_seq_length: int) -> None:
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    limits = {"max_seq_length": max_seq_length, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": hidden_size} | modes))
    (folder / "2_Normalize").mkdir()
    (folder / "2_Normalize" / ".keep").touch()


_QWEN3: Final = "Qwen/Qwen3-0.6B"
_OPT_SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 128,
}

MODELS: Final[dict[str, Build]] = {
    **{name: _chat("qwen3.jinja", max_new_tokens=256) for name in ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B")},
    **{name: _chat("qwen3.jinja") for name in (_QWEN3, "google/translategemma-4b-it")},
    **{
        name: _chat("qwen2.jinja")
        for name in (
            "Qwen/Qwen2-1.5B-Instruct",
            "Qwen/Qwen2.5-1.5B-Instruct",
            "HuggingFaceH4/zephyr-7b-beta",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            "meta-llama/Llama-3.2-1B",
            "meta-llama/Llama-3.2-1B-Instruct",
            "unsloth/llama-3.2-1b-Instruct",
            "ibm-granite/granite-4.0-h-tiny",
        )
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _chat("deepseek_r1.jinja"),
    "hmellor/tiny-random-LlamaForCausalLM": _causal("llama", **_LLAMA_SHAPE),
    "JackFram/llama-68m": _causal("llama", **_LLAMA_SHAPE),
    "TitanML/tiny-mixtral": _causal("mixtral", **_LLAMA_SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "facebook/opt-125m": _causal("opt", **_OPT_SHAPE),
    "openai-community/gpt2": _causal("gpt2", n_embd=128, n_layer=2, n_head=4, n_positions=1024),
    "distilbert/distilgpt2": _causal("gpt2", n_embd=128, n_layer=2, n_head=4, n_positions=1024),
    "intfloat/multilingual-e5-small": _encoder("bert", 250037, 384, pooling="mean_tokens", tokenizer="xlm-roberta"),
    "intfloat/e5-small": _encoder("bert", 49152, 384, pooling="mean_tokens"),
    "sentence-transformers/all-MiniLM-L12-v2": _encoder("bert", 49152, 384, pooling="mean_tokens", max_seq_length=128),
    "Snowflake/snowflake-arctic-embed-m-v1.5": _encoder("bert", 49152, 768, pooling="cls_token"),
    "BAAI/bge-base-en-v1.5": _encoder("bert", 49152, 768, pooling="cls_token"),
    "BAAI/bge-reranker-base": _encoder("xlm-roberta", 250002, 128, num_labels=1),
    "BAAI/bge-reranker-v2-m3": _encoder("xlm-roberta", 250002, 128, num_labels=1),
    "cross-encoder/ms-marco-MiniLM-L-6-v2": _encoder("bert", 49152, 128, num_labels=1),
    "jason9693/Qwen2.5-1.5B-apeach": _classifier,
    "answerdotai/answerai-colbert-small-v1": _colbert,
    "typeof/zephyr-7b-beta-lora": _lora("HuggingFaceH4/zephyr-7b-beta"),
    "Jackmin108/Qwen3-0.6B-Meow-LoRA": _lora(_QWEN3),
    "Jackmin108/Qwen3-0.6B-Woof-LoRA": _lora(_QWEN3),
    "charent/self_cognition_Alice": _lora(_QWEN3),
    "minpeter/LoRA-Llama-3.2-1B-tool-vllm-ci": _lora("meta-llama/Llama-3.2-1B-Instruct"),
    "jekunz/smollm-135m-lora-fineweb-faroese": _lora("HuggingFaceTB/SmolLM2-135M-Instruct", rank=256),
    "peft-internal-testing/opt-125m-dummy-lora": _lora("facebook/opt-125m", hidden=128, keys=128, layers=2),
}
"""Name on the hub -> the function that builds the model."""
