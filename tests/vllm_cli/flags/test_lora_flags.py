"""The flags of LoRA adapters, as in vLLM."""

import click
import pytest

from base.errors import ConfigError
from server.config import LoraConfig, LoraModule

_MODULE = "--lora-modules"


def test_without_flags_there_are_no_adapters(parse):
    config = parse("m")
    assert config.engine.lora == LoraConfig(enable_lora=False, max_loras=1, max_lora_rank=16)
    assert config.server.lora_modules == ()
    assert config.server.allow_runtime_lora_updating is False


def test_modules_are_pairs_or_json(parse):
    json = '{"name": "b", "path": "/b=1", "base_model_name": "m", "is_3d_lora_weight": false}'
    config = parse("m", "--enable-lora", _MODULE, "a=/a", json)
    assert config.server.lora_modules == (
        LoraModule(name="a", path="/a"),
        LoraModule(name="b", path="/b=1", base_model_name="m"),
    )


@pytest.mark.parametrize(
    "word", ["a", "=x", "a=", "[1]", '{"name": "a"}', '{"name": 1, "path": "x"}', '{"name": "a", "path": "b", "c": 1}']
)
def test_other_modules_are_usage_errors(parse, word):
    with pytest.raises(click.BadParameter, match="--lora-modules must be NAME=PATH or"):
        parse("m", "--enable-lora", _MODULE, word)


def test_the_number_of_adapters_in_memory_has_no_limit_unless_given(parse):
    words = ("--enable-lora", "--max-loras", "4", "--max-lora-rank", "64", "--lora-dtype", "bfloat16")
    lora = parse("m", *words).engine.lora
    assert (lora.max_loras, lora.max_cpu_loras, lora.max_lora_rank, lora.lora_dtype) == (4, None, 64, "bfloat16")
    assert parse("m", "--max-loras", "2", "--max-cpu-loras", "5").engine.lora.max_cpu_loras == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-lora-rank", "7"), "--max-lora-rank must be one of 1, 8, 16, .*, got 7"),
        (("--max-loras", "0"), "--max-loras must be 1 or more"),
        (("--max-loras", "3", "--max-cpu-loras", "2"), "--max-cpu-loras must be --max-loras .3. or more, got 2"),
        ((_MODULE, "a=b"), "--lora-modules must be given with --enable-lora, got 'a'"),
        (("--enable-lora", _MODULE, "a=b", "a=c"), "--lora-modules must be a name that no other .*, got 'a'"),
        (("--enable-lora", _MODULE, "m=b"), "--lora-modules must be a name that no other .*, got 'm'"),
        (("--lora-adapter-root", "/nowhere"), "--lora-adapter-root must be a folder that exists"),
    ],
)
def test_contradictions_are_usage_errors(parse, words, message):
    with pytest.raises(ConfigError, match=message):
        parse("m", *words)


def test_the_variable_allows_changes_at_run_time(parse, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    config = parse("m", "--enable-lora", "--lora-adapter-root", str(tmp_path)).server
    assert config.allow_runtime_lora_updating is True
    assert config.lora_adapter_root == str(tmp_path)
