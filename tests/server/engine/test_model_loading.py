"""Models load completely, or fail with a message of one line. The engine chooses the right device."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from base.errors import EngineStartError
from server.engine import model_loading
from server.engine.model_loading import (
    choose_device,
    derive_max_model_len,
    describe_lack,
    find_eos_token_ids,
    load_model,
)
from server.terms.config import EngineConfig
from startup.files.model.checkpoint_folder import model_problem
from tests.server.engine.tiny_models import PACKED, build_model
from tests.support.marks import thorough_but_for

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("names", "dtype"),
    [("auto float32 float", torch.float32), ("bfloat16", torch.bfloat16), ("float16 half", torch.float16)],
)
def test_every_parameter_has_the_requested_dtype(saved_llama, names, dtype):
    for name in names.split():
        model = load_model(saved_llama, EngineConfig(dtype=name))
        assert {p.dtype for p in model.parameters()} == {dtype}, name
        assert not model.training


def test_auto_uses_the_checkpoints_dtype(tmp_path):
    build_model("llama", PACKED["llama"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, EngineConfig()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("architecture", "options"), [("mixtral", {}), ("gpt2", {}), ("llama", {"tie_word_embeddings": True})]
)
def test_merged_renamed_and_tied_weights_load(architecture, options, tmp_path):
    model = build_model(architecture, {**PACKED[architecture], **options})
    model.save_pretrained(tmp_path)
    assert not options or "lm_head.weight" not in load_file(tmp_path / WEIGHTS), "they are stored once"
    _assert_same_logits(load_model(tmp_path, EngineConfig()), model)


def test_no_weight_is_read(saved_llama, monkeypatch):
    read: list[int] = []
    original: Any = torch.UntypedStorage.__getitem__

    def get(storage: torch.UntypedStorage, place: Any) -> Any:
        if isinstance(place, int):
            read.append(place)
        return original(storage, place)

    monkeypatch.setattr(torch.UntypedStorage, "__getitem__", get)
    load_model(saved_llama, EngineConfig())
    assert not read
    monkeypatch.setattr(model_loading, "_views_without_reading", nullcontext)
    load_model(saved_llama, EngineConfig())
    assert read, "the libraries themselves read the first bytes no more: nothing is left to skip"


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _shard_below(folder: Path) -> None:
    """Moves a shard to a subfolder, which the index names."""
    _shard(folder)
    index = folder / "model.safetensors.index.json"
    shard = min(folder.glob("model-*.safetensors"))
    (folder / "sub").mkdir()
    shard.rename(folder / "sub" / shard.name)
    index.write_text(index.read_text().replace(shard.name, f"sub/{shard.name}"))
    assert model_problem(folder) is None


def _with_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


_add_tensor = _with_weights(lambda tensors: tensors | {"model.rotary.inv_freq": torch.ones(3)})


@pytest.mark.parametrize(
    ("change", "num_files"),
    [(lambda folder: _shard(folder), 4), (_shard_below, 3), (_pickle, 0), (_add_tensor, 1)],
    ids=["sharded", "sharded in a subfolder", "pickled", "an unknown tensor"],
)
def test_weights_load_in_every_form(llama_copy, plain_llama, change, num_files):
    change(llama_copy)
    assert len(list(llama_copy.glob("model*.safetensors"))) >= num_files
    _assert_same_logits(load_model(llama_copy, EngineConfig()), plain_llama)


def _with_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def _lose_shard(folder: Path) -> None:
    _shard(folder)
    next(folder.glob("model-00002-*")).unlink()


_OWN_CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
_NOT_CAUSAL = "is not a causal language model: config.json names "
_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1000]),
        "cannot load the weights in .*incomplete metadata",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot load the weights in .*no file named model.safetensors"),
    "a shard lost": (_lose_shard, "cannot load the weights in .*model-00002-of-"),
    "a layer lost": (
        _with_weights(lambda tensors: {k: v for k, v in tensors.items() if "layers.1." not in k}),
        r"lack 9 of the model's tensors: model\.layers\.1\.input_layernorm\.weight, .*, …$",
    ),
    "another shape": (
        _with_weights(lambda tensors: tensors | {"model.norm.weight": torch.ones(3)}),
        r"do not fit config.json: model\.norm\.weight is \[3\] instead of \[64\]$",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot read the model's configuration in "),
    "an unknown type": (_with_config(model_type="llama9"), "cannot read the model's configuration in .*`llama9`"),
    "a masked model": (
        _with_config(model_type="bert", architectures=["BertForMaskedLM"]),
        _NOT_CAUSAL + "BertForMaskedLM$",
    ),
    "an encoder and decoder": (
        _with_config(model_type="bart", architectures=["BartForConditionalGeneration"], is_encoder_decoder=True),
        _NOT_CAUSAL + "BartForConditionalGeneration$",
    ),
    "a model without text": (_with_config(model_type="clip"), "CLIPConfig"),
    "own code": (_with_config(model_type="own", auto_map=_OWN_CODE), r"runs code of its own .*--trust-remote-code"),
}


@pytest.mark.parametrize("damage", thorough_but_for(_DAMAGES, *(_DAMAGES.keys() - {"a model without text"})))
def test_a_damaged_folder_is_reported_in_one_line(llama_copy, damage, capfd):
    spoil, message = _DAMAGES[damage]
    spoil(llama_copy)
    capfd.readouterr()
    with pytest.raises(EngineStartError, match=message) as caught:
        load_model(llama_copy, EngineConfig())
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 600
    assert capfd.readouterr() == ("", "")


ALLOWED = {"allow_long_max_model_len": True}


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("llama", {}, 512),
        ("llama", {"max_model_len": 512}, 512),
        ("llama", {"max_model_len": 7}, 7),
        ("gpt2", {}, 1024),
        ("mamba", {}, 2048),
        ("llama", {"max_model_len": 600} | ALLOWED, 600),
        ("gemma3_text", {"max_model_len": 600} | ALLOWED, 600),
        ("llama", {"max_model_len": 513}, "^--max-model-len 513 is .* give at most 512, or set VLLM_ALLOW_LONG_MAX_"),
        ("gpt2", {"max_model_len": 1025} | ALLOWED, "limit of 1024 tokens .* no further positions"),
    ],
)
def test_max_model_len_is_the_models_own_unless_the_user_chooses_another(model_type, options, expected, caplog):
    own = {} if model_type in ("gpt2", "mamba") else {"max_position_embeddings": 512}
    with nullcontext() if isinstance(expected, int) else pytest.raises(EngineStartError, match=expected):
        assert derive_max_model_len(CONFIG_MAPPING[model_type](**own), EngineConfig(**options)) == expected
    assert ("is more than the model's own limit of 512 tokens (config.json)" in caplog.text) == (expected == 600)


def test_eos_tokens_come_from_all_files_the_tokenizers_first(plain_llama, llama_copy):
    (llama_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    (llama_copy / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    (llama_copy / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 9, "content": "<end>"}]}))
    assert find_eos_token_ids(plain_llama, llama_copy, llama_copy) == (9, 7, 2)


@pytest.mark.parametrize(
    "before",
    [
        '"model": {"added_tokens": [{"id": 8, "content": "<end>"}]}, ',
        f'"comment": "{"ä" * 600_000}", ',
        '"comment": "\\"added_tokens\\": [", ',
    ],
    ids=["nested", "late", "quoted"],
)
def test_the_tokenizers_eos_is_found_wherever_the_file_has_it(plain_llama, llama_copy, before):
    (llama_copy / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    tokens = [{"id": n, "content": f"<{n}>"} for n in range(50)] + [{"id": 99, "content": "<end>"}]
    (llama_copy / "tokenizer.json").write_text(f'{{{before}"added_tokens": {json.dumps(tokens)}}}', encoding="utf-8")
    assert find_eos_token_ids(plain_llama, llama_copy, llama_copy)[0] == 99


@pytest.mark.parametrize("tokenizer_config", ["{", "[]", '{"eos_token": "<unknown>"}'])
def test_eos_tokens_of_a_tokenizer_that_names_none(plain_llama, llama_copy, tokenizer_config):
    (llama_copy / "tokenizer_config.json").write_text(tokenizer_config)
    (llama_copy / "tokenizer.json").write_text("{}")
    assert find_eos_token_ids(plain_llama, llama_copy, llama_copy) == (2,)
    (llama_copy / "generation_config.json").write_text("{")
    with pytest.raises(EngineStartError, match="cannot read generation_config.json"):
        find_eos_token_ids(plain_llama, llama_copy, llama_copy)


def _shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    build_model("llama", PACKED["llama"]).save_pretrained(folder, max_shard_size="60KB")


@torch.inference_mode()
def _assert_same_logits(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for GPUs")
def test_a_gpu_that_this_torch_cannot_use_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(model_loading, "_GPU_DEVICE", tmp_path)
    with caplog.at_level(logging.WARNING, logger="server.engine.model_loading"):
        assert choose_device() == torch.device("cpu")
    assert f"torch {torch.__version__} cannot use it: computing on the CPU" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that CUDA can use")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_a_driver_failure_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as NVML reports
    with pytest.raises(EngineStartError, match="CUDA cannot use it .*CUDA_VISIBLE_DEVICES set to nothing") as caught:
        choose_device()
    assert "\n" not in str(caught.value)


def test_lack_of_memory_is_described_with_the_sizes():
    assert describe_lack("the weights take", 16 << 30, 5 << 30, 24 << 30).startswith(
        "the weights take 16 GiB, and 5 of the GPU's 24 GiB are free: "
    )
