"""Words of a command line by vLLM's rules, and the types of their values."""

import json

import click
import pytest

from startup.words.arguments import Arguments
from startup.words.errors import InputError
from startup.words.param_types import ChatTemplate, HumanInt, JsonObject, JsonStrings, TokenLimit


def values_of(*words: str) -> dict[str, list[str]]:
    return {name: given.values for name, given in Arguments.parse(words).flags.items()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        *((words, {"--tensor-parallel-size": ["2"]}) for words in ("--tensor-parallel-size 2", "-tp 2", "-tp=2")),
        ("--tensor_parallel_size=2", {"--tensor-parallel-size": ["2"]}),
        *((words, {"--optimization-level": ["3"]}) for words in ("-O3", "-O=3", "-O 3", "--optimization-level 3")),
        ("--enable-prefix-caching", {"--enable-prefix-caching": ["true"]}),
        ("--no_enable_prefix_caching", {"--enable-prefix-caching": ["false"]}),
        ("--enforce-eager --no-enforce-eager", {"--enforce-eager": ["false"]}),
        ("model --api-key a b --port 1 --api-key c", {"--api-key": ["a", "b", "c"], "--port": ["1"]}),
        ("--port 1 --port 2", {"--port": ["2"]}),
        ("--hf-token --port 1", {"--hf-token": [""], "--port": ["1"]}),
        ("--hf-token abc", {"--hf-token": ["abc"]}),
        ("--max-model-len -1", {"--max-model-len": ["-1"]}),
        ("--chat-template -{{x}}", {"--chat-template": ["-{{x}}"]}),
    ],
)
def test_a_flag_has_these_spellings_and_values(words, expected):
    """Spellings, switches, lists, repetitions, optional values, and values that begin with a dash."""
    assert values_of(*words.split()) == expected


def test_a_switch_takes_no_value():
    with pytest.raises(InputError, match="--enforce-eager takes no value: write --enforce-eager or --no-enforce-eager"):
        Arguments.parse(["--enforce-eager=true"])


def test_a_list_that_may_contain_the_model_is_recorded():
    assert Arguments.parse(["--served-model-name", "a", "model"]).greedy_flag == "--served-model-name"
    assert Arguments.parse(["--served-model-name", "a"]).greedy_flag is None


@pytest.mark.parametrize("words", [("--host",), ("--host", "--port", "1"), ("--api-key", "--port=1")], ids=" ".join)
def test_a_missing_value_is_an_error(words):
    with pytest.raises(InputError, match="requires an argument"):
        Arguments.parse(words)


def test_words_after_two_dashes_are_positional():
    arguments = Arguments.parse(["--port", "1", "--", "--host"])
    assert arguments.positionals == ["--host"]
    assert list(arguments.flags) == ["--port"]


def test_dotted_keys_form_one_json_value():
    words = (
        "--override-generation-config.temperature=0.5",
        "--override-generation-config",
        '{"top_k": 1, "temperature": 1}',
        "--override_generation_config.deep.max_new_tokens",
        "8k",
    )
    ((name, (value,)),) = values_of(*words).items()
    assert name == "--override-generation-config"
    assert json.loads(value) == {"top_k": 1, "temperature": 0.5, "deep": {"max_new_tokens": 8000}}


def test_dotted_lists_are_extended():
    words = ("-cc.sizes+", "1,2", "-cc.sizes+=4", "-cc.backend", "eager")
    ((name, (value,)),) = values_of(*words).items()
    assert name == "--compilation-config"
    assert json.loads(value) == {"sizes": [1, 2, 4], "backend": "eager"}


def test_dotted_keys_after_invalid_json_are_an_error():
    with pytest.raises(InputError, match="--default-chat-template-kwargs: '{' is not JSON"):
        Arguments.parse(["--default-chat-template-kwargs", "{", "--default-chat-template-kwargs.a", "1"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("8k", 8000),
        ("8K", 8192),
        ("25.6k", 25600),
        ("2M", 2 << 20),
        ("1g", 10**9),
        ("1T", 1 << 40),
        ("-3", -3),
    ],
)
def test_a_whole_number_may_have_a_suffix(text, value):
    assert HumanInt().convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "k", "1.5", "1.5K", "8kb", "many"])
def test_a_value_that_is_not_a_whole_number_is_rejected(text):
    with pytest.raises(click.BadParameter):
        HumanInt().convert(text, None, None)


@pytest.mark.parametrize(("text", "value"), [("auto", None), ("AUTO", None), ("-1", None), ("1k", 1000), (7, 7)])
def test_auto_is_the_limit_of_the_model(text, value):
    assert TokenLimit().convert(text, None, None) == value


@pytest.mark.parametrize("mode", ["grok2", "deepseek_v32"])
def test_a_tokenizer_mode_that_only_vllm_has_is_rejected(mode, parse):
    with pytest.raises(click.BadParameter, match=rf"'{mode}' is not one of auto, hf, .*\. Others need --engine vllm"):
        parse("m", "--tokenizer-mode", mode)


@pytest.mark.parametrize("value", ["int8", "int8_per_channel_weight_only", "awq"])
def test_quantization_needs_vllm_or_llama_server(value, parse):
    with pytest.raises(InputError, match=f"--quantization {value} requests quantized.*llama-server.*--engine vllm"):
        parse("m", "-q", value)
    assert parse("m", "-q", "None").model.model == "m"


def test_json_must_have_the_expected_type():
    assert JsonObject().convert('{"a": 1}', None, None) == {"a": 1}
    assert JsonStrings().convert('["a"]', None, None) == ("a",)
    for type_, text in ((JsonObject(), "[]"), (JsonObject(), "{"), (JsonStrings(), "{}"), (JsonStrings(), "[1]")):
        with pytest.raises(click.BadParameter):
            type_.convert(text, None, None)


def test_a_template_is_a_file_or_a_text_with_braces_or_lines(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    assert ChatTemplate().convert(str(file), None, None) == "{{ messages }}"
    assert ChatTemplate().convert("{% for m in messages %}", None, None) == "{% for m in messages %}"
    assert ChatTemplate().convert("{{ x }}" * 2000, None, None) == "{{ x }}" * 2000


def test_any_other_template_is_rejected_with_the_reason(tmp_path):
    with pytest.raises(click.BadParameter, match="No such file or directory"):
        ChatTemplate().convert(str(tmp_path / "missing.jinja"), None, None)
