"""A model's files tell whether it takes images, generates or pools, and what only vLLM reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.terms.config import EngineConfig, ModelFiles, RendererConfig
from server.text.model_files import (
    VISION_MODEL_TYPES,
    ModelKind,
    TokenizerLoadError,
    accepts_images,
    foreign_problem,
    read_model_kind,
    read_sentence_files,
)
from server.text.renderers.renderer import Renderer

GENERATE = ModelKind("generate", "none")


def _kind(folder: Path, *architectures: str, **options: Any) -> ModelKind:
    _write_config(folder, {"architectures": list(architectures)})
    return read_model_kind(folder, EngineConfig(**options))


def _write_config(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def _write_modules(folder: Path, *kinds: str, package: str = "sentence_transformers.models") -> None:
    modules = [{"type": f"{package}.{kind}", "path": f"{index}_{kind}"} for index, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("architecture", "options", "kind"),
    [
        *((name, {}, GENERATE) for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "SomethingNew")),
        *((name, {}, GENERATE) for name in ("Gemma3ForConditionalGeneration", "BertForMaskedLM")),
        *((name, {}, ModelKind("pooling", "embed")) for name in ("BertModel", "Qwen2Model", "RobertaForMaskedLM")),
        ("BertForSequenceClassification", {}, ModelKind("pooling", "classify")),
        ("BertForTokenClassification", {}, ModelKind("pooling", "token_classify")),
        ("HF_ColBERT", {}, ModelKind("pooling", "colbert")),
        ("LlamaForCausalLM", {"runner": "pooling"}, ModelKind("pooling", "embed")),
        ("LlamaForCausalLM", {"convert": "embed"}, ModelKind("pooling", "embed")),
        ("LlamaForCausalLM", {"convert": "classify"}, ModelKind("pooling", "classify")),
        ("LlamaForCausalLM", {"runner": "pooling", "convert": "none"}, ModelKind("pooling", "none")),
        ("BertModel", {"runner": "generate"}, GENERATE),
        ("BertForSequenceClassification", {"convert": "embed"}, ModelKind("pooling", "embed")),
        ("BertForSequenceClassification", {"convert": "none"}, ModelKind("pooling", "classify")),
    ],
)
def test_the_architecture_determines_the_kind_unless_flags_override_it(tmp_path, architecture, options, kind):
    assert _kind(tmp_path, architecture, **options) == kind


def test_sentence_transformers_files_make_a_language_model_an_embedder(tmp_path):
    _write_modules(tmp_path, "Transformer", "Pooling")
    assert _kind(tmp_path, "Qwen2ForCausalLM") == ModelKind("pooling", "embed")


def test_a_folder_that_cannot_be_read_raises_no_error(tmp_path):
    assert read_model_kind(tmp_path / "nowhere", EngineConfig()) == GENERATE
    (tmp_path / "config.json").write_text("[1")
    (tmp_path / "modules.json").write_text("{")
    assert read_model_kind(tmp_path, EngineConfig()) == GENERATE


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "CLS"),
        ({"pooling_mode_mean_tokens": True}, "MEAN"),
        ({"pooling_mode_lasttoken": True}, "LAST"),
        ({"pooling_mode": "mean"}, "MEAN"),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({}, None),
    ],
)
def test_the_pooling_type_is_read_from_its_module(tmp_path, config, kind):
    _write_modules(tmp_path, "Transformer", "Pooling")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert read_sentence_files(tmp_path).pooling_type == kind


def test_module_names_of_newer_and_other_packages_are_recognized(tmp_path):
    _write_modules(tmp_path, "pooling.Pooling", "normalize.Normalize", package="sentence_transformers.base.modules")
    files = read_sentence_files(tmp_path)
    assert files.has_pooling
    assert files.normalizes
    assert files.unknown_modules == ()
    _write_modules(tmp_path, "Transformer", "Pooling", "LSTM")
    assert read_sentence_files(tmp_path).unknown_modules == ("LSTM",)
    _write_modules(tmp_path, "Thing", package="mine")
    assert read_sentence_files(tmp_path).unknown_modules == ("mine.Thing",)


def test_limits_of_texts_are_read(tmp_path):
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": true}')
    files = read_sentence_files(tmp_path)
    assert (files.max_seq_length, files.does_lower_case) == (256, True)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert read_sentence_files(tmp_path).max_seq_length is None


OTHERS: list[Any] = [
    *({"model_type": name} for name in ("llama", "llava")),
    *({"model_type": name, "vision_config": {}} for name in ("gemma3", "paligemma", "mllama", "qwen3_vl")),
    *({"model_type": name, "vision_config": {}} for name in (None, ["llava"])),
    *([], {}),
]


def test_only_tested_vision_models_in_whole_folders_accept_images(tmp_path):
    assert not accepts_images(tmp_path)
    for model_type in VISION_MODEL_TYPES:
        _write_config(tmp_path, {"model_type": model_type, "vision_config": {}})
        assert accepts_images(tmp_path), model_type
    for config in OTHERS:
        _write_config(tmp_path, config)
        assert not accepts_images(tmp_path), config
    (tmp_path / "config.json").write_text("{")
    assert not accepts_images(tmp_path)


DEEPSEEK = '{"model_type": "deepseek_v32"}'


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["tekken.json"], "tekken.json"),
        (["tekken_240911.json", "consolidated.safetensors"], "tekken_240911.json"),
        (["tokenizer.model.v3", "spiece.model"], "tokenizer.model.v3"),
        (["mistral_instruct_tokenizer_241114.model.v7m1"], "mistral_instruct_tokenizer_241114.model.v7m1"),
        (["tokenizer.tok.json"], "Grok-2"),
        ([f"config.json={DEEPSEEK}", "tokenizer.json"], "DeepSeek-V3.2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_tokenizer_that_only_vllm_reads_is_an_error_unless_the_operator_wants_it(names, named, tmp_path):
    for name, _, content in (each.partition("=") for each in names):
        (tmp_path / name).write_text(content)
    assert foreign_problem(tmp_path, "hf") is None
    with pytest.raises(TokenizerLoadError, match="--engine vllm") as raised:
        Renderer(ModelFiles(tmp_path, tmp_path), RendererConfig())
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "names",
    [
        ["tokenizer.json", "tekken.json", "consolidated.safetensors"],
        ["tokenizer.model", "tokenizer.model.v3"],
        ["tokenizer.json", "tokenizer.tok.json"],
        ["spiece.model", "tekken.txt", "tokenizer.model.v3.bak"],
        [],
    ],
    ids=" ".join,
)
def test_what_transformers_may_read_is_no_problem(names, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert foreign_problem(tmp_path, "auto") is None
