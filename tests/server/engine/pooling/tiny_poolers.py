"""Writes pooling models with random weights in the real formats, a few kilobytes each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from server.engine.phases import Phases
from server.engine.pooling.core import build_pooling_core
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import EngineOutput, PoolingParams
from server.text.model_files import read_model_kind

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TEXT = (
    "hello world the a capital of france germany is paris berlin what and cat dog sat on mat weather sunny rainy today "
    "yes no user assistant query document model text short long longer longest"
)
VOCABULARY = tuple(dict.fromkeys([*SPECIAL, *_TEXT.split(), *"abcdefghijklmnopqrstuvwxyz"]))
VOCAB = len(VOCABULARY)
MAX_LEN = 64

_COMMON = {"vocab_size": VOCAB, "max_position_embeddings": MAX_LEN, "pad_token_id": 0, "initializer_range": 0.4}
_ENCODER: dict[str, Any] = {
    **_COMMON,
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"bos_token_id": 2, "eos_token_id": 3},
}
_ROBERTA = {**_ENCODER, "max_position_embeddings": MAX_LEN + 1, "type_vocab_size": 1}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "tie_word_embeddings": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": {**_COMMON, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "modernbert": {
        **_ENCODER,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "initializer_cutoff_factor": 2.0,
    },
    "llama": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 8},
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")
DECODERS = ("llama", "qwen3")

_AUTO: dict[str, Any] = {
    "embed": AutoModel,
    "classify": AutoModelForSequenceClassification,
    "token_classify": AutoModelForTokenClassification,
    "generate": AutoModelForCausalLM,
}


def save_pooler(folder: Path, model_type: str, head: str = "embed", **options: Any) -> PreTrainedModel:
    """Saves weights, configuration and tokenizer, and returns the model for reference values."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**(CONFIGS[model_type] | options))
    model = _AUTO[head].from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    save_wordpiece(folder)
    return model  # type: ignore[no-any-return]


def save_wordpiece(folder: Path) -> None:
    """Saves a tokenizer like BERT's: words in lower case, [CLS] text [SEP] pair [SEP]."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": MAX_LEN,
        **dict(zip(names, SPECIAL, strict=True)),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_sentence_files(folder: Path, *, mode: str = "mean", normalizes: bool = True, dense: bool = False) -> None:
    """Saves the files of sentence-transformers beside a model. The linear layer maps 32 numbers to 8."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalizes else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if not index else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    modes = {name: name.startswith(mode) for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32} | {f"pooling_mode_{name}": on for name, on in modes.items()})
    )
    if dense:
        torch.manual_seed(1)
        (folder / "2_Dense").mkdir()
        activation = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense" / "config.json").write_text(
            json.dumps({"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation})
        )
        tensors = {"linear.weight": torch.randn(8, 32) * 0.3, "linear.bias": torch.randn(8)}
        save_file(tensors, folder / "2_Dense" / "model.safetensors")


def save_colbert(folder: Path) -> tuple[PreTrainedModel, torch.Tensor]:
    """Saves a BERT with ColBERT's linear layer in the same file. Returns model and layer."""
    model = save_pooler(folder, "bert")
    torch.manual_seed(2)
    linear = torch.randn(8, 32)
    tensors = {f"bert.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file({**tensors, "linear.weight": linear}, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, architectures=["HF_ColBERT"], dim=8)
    return model, linear


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes keys of the saved config.json. None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


PROMPTS = [[2, 5, 6, 7, 8, 9, 10, 3], [2, 5, 3], [2, 11, 12, 13, 14, 3], [2, *range(5, 30), 3], [2, 5, 6, 7, 3]]


class SmallPooling:
    """Runs the steps of a pooling core, which is built as in the engine process."""

    def __init__(self, folder: Path, **config: Any) -> None:
        files, engine = ModelFiles(folder, folder), EngineConfig(**config)
        self.core, self.info = build_pooling_core(read_model_kind(folder, engine), files, engine, Phases())
        self.batches: list[list[str]] = []
        """The request ids of each step."""

    def run(self, prompts: list[list[int]], types: list[list[int]] | None = None, **params: Any) -> list[torch.Tensor]:
        """The results in the order of the prompts. Without `task`, the model's default task is used."""
        outputs = self.outputs(prompts, types, **params)
        assert all(output.error is None for output in outputs), [output.error for output in outputs]
        return [tensor(output) for output in outputs]

    def outputs(self, prompts: list[list[int]], types: list[list[int]] | None, **params: Any) -> list[EngineOutput]:
        wanted = PoolingParams(**({"task": self.info.pooling.task} | params))
        found: dict[str, EngineOutput] = {}
        for index, prompt in enumerate(prompts):
            rejection = self.core.pool(str(index), prompt, types[index] if types else None, wanted)
            if rejection is not None:
                found[rejection.request_id] = rejection
        while self.core.has_work:
            outputs = self.core.step()
            self.batches.append([output.request_id for output in outputs])
            found |= {output.request_id: output for output in outputs}
        return [found[str(index)] for index in range(len(prompts))]


def tensor(output: EngineOutput) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(output.data.data, np.float32).reshape(output.data.shape).copy())


def hidden_states(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """The hidden states of one prompt alone, without padding."""
    return _run_alone(model, prompt, None).last_hidden_state[0]  # type: ignore[no-any-return]


def logits(model: PreTrainedModel, prompt: list[int], types: list[int] | None = None) -> torch.Tensor:
    """The logits of one prompt alone, without padding."""
    return _run_alone(model, prompt, types).logits[0]  # type: ignore[no-any-return]


def _run_alone(model: PreTrainedModel, prompt: list[int], types: list[int] | None) -> Any:
    inputs = {"input_ids": torch.tensor([prompt])} | ({"token_type_ids": torch.tensor([types])} if types else {})
    with torch.no_grad():
        return model(**inputs)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return normalize(vectors, dim=-1)


def assert_close(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, atol=2e-5, rtol=1e-4)
