"""Types of flag values."""

import click
import pytest

from vllm_cli.flags.param_types import ChatTemplate, HumanInt, JsonObject, JsonStrings, TokenLimit


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


def test_a_tokenizer_mode_that_only_vllm_has_is_rejected(parse):
    with pytest.raises(click.BadParameter, match="'grok2' is not one of auto, .*; others need --engine vllm"):
        parse("m", "--tokenizer-mode", "grok2")


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
