"""Models load completely or fail with a message of one line."""

import json
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
from server.config import EngineConfig
from server.engine.model import model_loading
from server.engine.model.model_loading import derive_max_model_len, find_eos_token_ids, load_config, load_model
from tests.server.engine.tiny_models import PACKED, build_model

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("float", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("half", torch.float16),
    ],
)
def test_every_parameter_has_the_requested_dtype(saved_llama, name, dtype):
    model = load_model(saved_llama, EngineConfig(dtype=name))  # type: ignore[arg-type]
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.training


def test_auto_uses_the_checkpoints_dtype(tmp_path):
    build_model("llama", PACKED["llama"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, EngineConfig()).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["mixtral", "gpt2"])  # with merged tensors, renamed
def test_other_architectures_load(architecture, tmp_path):
    model = build_model(architecture, PACKED[architecture])
    model.save_pretrained(tmp_path)
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


def test_other_arrays_are_made_by_torch():
    before = torch.asarray
    storage = torch.tensor([1.0, 2.0]).untyped_storage()
    with pytest.raises(ValueError, match="alias"), model_loading._views_without_reading():
        assert torch.asarray([1, 2], dtype=torch.uint8).tolist() == [1, 2]
        assert torch.asarray(storage, dtype=torch.uint8).data_ptr() == storage.data_ptr()
        torch.asarray(storage, dtype=torch.uint8, copy=False)  # fails as outside of the block
    assert torch.asarray is before


def test_sharded_weights_load(llama_copy, plain_llama):
    _shard(llama_copy)
    assert len(list(llama_copy.glob("model-*.safetensors"))) > 3
    _assert_same_logits(load_model(llama_copy, EngineConfig()), plain_llama)


def test_pickled_weights_load(llama_copy, plain_llama):
    torch.save(load_file(llama_copy / WEIGHTS), llama_copy / "pytorch_model.bin")
    (llama_copy / WEIGHTS).unlink()
    _assert_same_logits(load_model(llama_copy, EngineConfig()), plain_llama)


def test_unknown_tensors_are_ignored(llama_copy, plain_llama):
    _change_weights(llama_copy, lambda tensors: tensors | {"model.rotary.inv_freq": torch.ones(3)})
    _assert_same_logits(load_model(llama_copy, EngineConfig()), plain_llama)


def test_tied_weights_that_are_stored_once_load(tmp_path):
    model = build_model("llama", {**PACKED["llama"], "tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    _assert_same_logits(load_model(tmp_path, EngineConfig()), model)


def _truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def _write_garbage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"garbage" * 100)


def _lose_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _lose_shard(folder: Path) -> None:
    _shard(folder)
    next(folder.glob("model-00002-*")).unlink()


def _break_index(folder: Path) -> None:
    _shard(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def _write_bad_pickle(folder: Path) -> None:
    _lose_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle" * 100)


def _drop_a_layer(folder: Path) -> None:
    _change_weights(folder, lambda tensors: {k: v for k, v in tensors.items() if "layers.1." not in k})


def _change_a_shape(folder: Path) -> None:
    _change_weights(folder, lambda tensors: tensors | {"model.norm.weight": torch.ones(3)})


def _lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def _invent_a_type(folder: Path) -> None:
    _change_config(folder, model_type="llama9")


def _name_a_masked_model(folder: Path) -> None:
    _change_config(folder, model_type="bert", architectures=["BertForMaskedLM"])


def _name_an_encoder_decoder(folder: Path) -> None:
    _change_config(folder, model_type="bart", architectures=["BartForConditionalGeneration"], is_encoder_decoder=True)


def _name_a_model_without_text(folder: Path) -> None:
    _change_config(folder, model_type="clip")


def _bring_own_code(folder: Path) -> None:
    _change_config(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "cannot load the weights in .*incomplete metadata"),
        (_write_garbage, "cannot load the weights in .*header"),
        (_lose_weights, "cannot load the weights in .*no file named model.safetensors"),
        (_lose_shard, "cannot load the weights in .*model-00002-of-"),
        (_break_index, "cannot load the weights in .*weight_map"),
        (_write_bad_pickle, "cannot load the weights in "),
        (_drop_a_layer, r"lack 9 of the model's tensors: model\.layers\.1\.input_layernorm\.weight, .*, …$"),
        (_change_a_shape, r"do not fit config.json: model\.norm\.weight is \[3\] instead of \[64\]$"),
        (_lose_config, "cannot read the model's configuration in "),
        (_break_config, "cannot read the model's configuration in .*not a valid JSON file"),
        (_invent_a_type, "cannot read the model's configuration in .*`llama9`"),
        (_name_a_masked_model, "is not a causal language model: config.json names BertForMaskedLM$"),
        (_name_an_encoder_decoder, "is not a causal language model: config.json names BartForConditionalGeneration$"),
        (_name_a_model_without_text, "CLIPConfig"),
        (_bring_own_code, r"runs code of its own .*--trust-remote-code"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_damaged_folder_is_reported_in_one_line(llama_copy, damage, message, capfd):
    damage(llama_copy)
    capfd.readouterr()
    with pytest.raises(EngineStartError, match=message) as caught:
        load_model(llama_copy, EngineConfig())
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 600
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("wanted", "expected"), [(None, 512), (512, 512), (7, 7)])
def test_max_model_len_is_the_models_own_or_less(saved_llama, wanted, expected):
    assert derive_max_model_len(load_config(saved_llama, EngineConfig()), wanted) == expected


def test_more_than_the_models_own_length_is_rejected(saved_llama):
    with pytest.raises(EngineStartError, match="--max-model-len 513 is more than the model's own limit of 512 tokens"):
        derive_max_model_len(load_config(saved_llama, EngineConfig()), 513)


@pytest.mark.parametrize("architecture", ["gpt2", "mamba"])
def test_max_model_len_with_another_config_key_or_without_any(architecture):
    config = CONFIG_MAPPING[architecture]()
    expected = {"gpt2": 1024, "mamba": 2048}[architecture]
    assert derive_max_model_len(config, None) == expected


def test_eos_tokens_come_from_all_files_the_tokenizers_first(saved_llama, llama_copy):
    (llama_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    (llama_copy / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    (llama_copy / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 9, "content": "<end>"}]}))
    model = load_model(saved_llama, EngineConfig())
    assert find_eos_token_ids(model, llama_copy, llama_copy) == (9, 7, 2)


@pytest.mark.parametrize(
    "before",
    [
        '"model": {"added_tokens": [{"id": 8, "content": "<end>"}]}, ',
        f'"comment": "{"ä" * 600_000}", ',
        '"comment": "\\"added_tokens\\": [", ',
    ],
    ids=["nested", "late", "quoted"],
)
def test_the_tokenizers_eos_is_found_wherever_the_file_has_it(saved_llama, llama_copy, before):
    (llama_copy / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    tokens = [{"id": n, "content": f"<{n}>"} for n in range(50)] + [{"id": 99, "content": "<end>"}]
    (llama_copy / "tokenizer.json").write_text(f'{{{before}"added_tokens": {json.dumps(tokens)}}}', encoding="utf-8")
    assert find_eos_token_ids(load_model(saved_llama, EngineConfig()), llama_copy, llama_copy)[0] == 99


@pytest.mark.parametrize("tokenizer_config", ["{", "[]", '{"eos_token": "<unknown>"}'])
def test_eos_tokens_of_a_tokenizer_that_names_none(saved_llama, llama_copy, tokenizer_config):
    (llama_copy / "tokenizer_config.json").write_text(tokenizer_config)
    (llama_copy / "tokenizer.json").write_text("{}")
    assert find_eos_token_ids(load_model(saved_llama, EngineConfig()), llama_copy, llama_copy) == (2,)


def test_the_real_models_eos_is_the_end_of_its_turn(saved_llama, model_path):
    im_end = 2
    assert find_eos_token_ids(load_model(saved_llama, EngineConfig()), model_path, model_path) == (im_end,)


def test_an_unreadable_generation_config_is_rejected(saved_llama, llama_copy):
    (llama_copy / "generation_config.json").write_text("{")
    with pytest.raises(EngineStartError, match="cannot read generation_config.json"):
        find_eos_token_ids(load_model(saved_llama, EngineConfig()), llama_copy, llama_copy)


def _shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    build_model("llama", PACKED["llama"]).save_pretrained(folder, max_shard_size="60KB")


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def _change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@torch.inference_mode()
def _assert_same_logits(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
