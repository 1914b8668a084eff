"""Default sampling values: the model's, a folder's, the operator's, or neutral ones."""

import json

import pytest

from base.errors import ConfigError
from server.config import ModelFiles
from server.generation.generation import SamplingDefaults
from server.server_config import GenerationConfig


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "top_p": None, "max_new_tokens": 100, "eos_token_id": [1, 2]})
    )
    return ModelFiles(folder, folder)


def defaults(model, **options):
    return SamplingDefaults.from_config(GenerationConfig(**options), model)


def test_the_models_own_values_are_read(model):
    found = defaults(model)
    assert (found.values.temperature, found.values.top_k, found.values.top_p) == (0.6, 20, 1.0)
    assert (found.values.max_new_tokens, found.max_tokens_cap) == (100, None)


def test_the_models_values_can_be_ignored(model):
    found = defaults(model, generation_config="vllm")
    assert (found.values.temperature, found.values.max_new_tokens) == (1.0, None)


def test_override_takes_precedence_over_the_model(model):
    found = defaults(model, override_generation_config={"temperature": 0.1, "max_new_tokens": 7})
    assert (found.values.temperature, found.values.top_k, found.max_tokens_cap) == (0.1, 20, 7)


def test_folder_replaces_the_model_and_caps_outputs(model, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"min_p": 0.2, "max_new_tokens": 9}')
    found = defaults(model, generation_config=str(tmp_path))
    assert (found.values.min_p, found.values.temperature, found.max_tokens_cap) == (0.2, 1.0, 9)


def test_model_without_a_file_is_neutral(tmp_path):
    assert defaults(ModelFiles(tmp_path, tmp_path)).values.temperature == 1.0


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        ({"generation_config": "nowhere"}, "{}", "--generation-config"),
        ({}, "{", r"generation_config\.json"),
        ({"override_generation_config": {"temperature": -1}}, "{}", "temperature"),
    ],
)
def test_an_unusable_file_or_value_is_an_error(model, options, content, words):
    (model.path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        defaults(model, **options)
