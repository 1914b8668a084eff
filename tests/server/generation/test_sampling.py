"""Sampling values: defaults, and checks against limits, vocabulary and context length."""

import json
from typing import Any

import pytest

from base.errors import ConfigError
from server.generation.generation import SamplingDefaults
from server.generation.request import CompletionRequest
from server.terms.config import ModelFiles
from server.terms.limits import LimitsConfig
from server.terms.server_config import GenerationConfig
from server.terms.types import SamplingParams
from tests.server.generation.conftest import Model, decode, read_cases
from tests.server.server_config import INFO


def sample(model: Model, *, num_prompt_tokens: int = 5, max_logprobs: int = 20, **fields: Any) -> SamplingParams:
    defaults = SamplingDefaults(max_logprobs=max_logprobs)
    request = decode(model, limits=LimitsConfig(max_choices=INFO.vocab_size), **fields)
    [params] = defaults.build_all(request, [num_prompt_tokens], INFO, reasoning=[None])
    return params


@pytest.mark.parametrize(("line", "model", "fields"), read_cases("sampled.jsonl"))
def test_values_are_normalised_as_in_vllm(line, model, fields):
    params = sample(model, num_prompt_tokens=line.get("num_prompt_tokens", 5), **fields)
    found = {name: getattr(params, name) for name in line["params"]}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()} == line["params"]


def test_minus_one_asks_for_the_log_probabilities_of_the_whole_vocabulary():
    assert sample(CompletionRequest, logprobs=-1, max_logprobs=-1).logprobs == INFO.vocab_size


def test_prompts_of_a_request_share_its_lists(model):
    request = decode(model, max_tokens=505, allowed_token_ids=list(range(1000)), logit_bias={5: 1.0})
    first, second = SamplingDefaults().build_all(request, [5, 12], INFO, reasoning=[None, None])
    assert (first.max_tokens, second.max_tokens) == (505, 500)
    assert second.allowed_token_ids is first.allowed_token_ids
    assert second.logit_bias is first.logit_bias


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "top_p": None, "max_new_tokens": 100, "eos_token_id": [1, 2]})
    )
    return ModelFiles(folder, folder)


def defaults_of(files, **options):
    return SamplingDefaults.from_config(GenerationConfig(**options), files)


@pytest.mark.parametrize(
    ("options", "values", "cap"),
    [
        ({}, {"temperature": 0.6, "top_k": 20, "top_p": 1.0, "max_new_tokens": 100}, None),
        ({"generation_config": "vllm"}, {"temperature": 1.0, "max_new_tokens": None}, None),
        (
            {"override_generation_config": {"temperature": 0.1, "max_new_tokens": 7}},
            {"temperature": 0.1, "top_k": 20},
            7,
        ),
        ({"generation_config": "FOLDER"}, {"min_p": 0.2, "temperature": 1.0}, 9),
    ],
    ids=["the model's own", "neutral", "override", "folder"],
)
def test_defaults_are_the_models_or_the_operators(files, tmp_path, options, values, cap):
    (tmp_path / "generation_config.json").write_text('{"min_p": 0.2, "max_new_tokens": 9}')
    options = {name: str(tmp_path) if value == "FOLDER" else value for name, value in options.items()}
    found = defaults_of(files, **options)
    assert {name: getattr(found.values, name) for name in values} == values
    assert found.max_tokens_cap == cap


def test_model_without_a_file_is_neutral(tmp_path):
    assert defaults_of(ModelFiles(tmp_path, tmp_path)).values.temperature == 1.0


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        ({"generation_config": "nowhere"}, "{}", "--generation-config"),
        ({}, "{", r"generation_config\.json"),
        ({"override_generation_config": {"temperature": -1}}, "{}", "temperature"),
    ],
)
def test_an_unusable_file_or_value_is_an_error(files, options, content, words):
    (files.path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        defaults_of(files, **options)
