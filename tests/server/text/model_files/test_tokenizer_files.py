"""Tokenizers that only vLLM reads are named before the start. All others are left to transformers."""

import pytest

from server.terms.config import ModelFiles, RendererConfig
from server.text.model_files import TokenizerLoadError, foreign_problem
from server.text.renderers.renderer import Renderer

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
