"""Formats of tool calls are detected by templates, model types and tokens."""

import pytest

from server.terms.server_config import TOOL_FORMATS
from server.text.parsers import detection
from server.text.parsers.detection import Detected, ModelFacts, detect_reasoning_format, detect_tool_format


def detect(template=None, model_type="llama", tokens=()):
    return detect_tool_format(ModelFacts(template, model_type, tokens))


@pytest.mark.parametrize(("template", "name"), [
    ("<|im_start|>… <tool_call>\n{{ call | tojson }}\n</tool_call>", "hermes"),
    ("<|im_start|>… <tool_call>\n<function={{ call.name }}>", "qwen3_xml"),
    ("<tool_call>{{ call.name }}<arg_key>{{ key }}</arg_key>", "glm45"),
    ("<|start_of_role|>assistant<|end_of_role|><|tool_call|>", "granite"),
    ("<|start_of_role|>assistant<|end_of_role|><tool_call>", "granite4"),
    ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n", "deepseek_v3"),
    ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>", "deepseek_v31"),
    ("<|function_call|>{{ call | tojson }}", "gigachat3"),
    ("[TOOL_CALLS]{{ calls | tojson }}", "mistral"),
    ('<|start_header_id|> Respond as {"name": name, "parameters": dictionary}', "llama3_json"),
])  # fmt: skip
def test_the_template_tells_the_format(template, name):
    assert detect(template, tokens=["<|python_tag|>"]) == Detected(name, "chat template")


def test_the_type_or_a_token_tells_the_format_that_the_template_does_not():
    assert detect("{{ messages }}", "gpt_oss") == Detected("openai", "model_type")
    assert detect(None, tokens=["</s>", "[TOOL_CALLS]"]) == Detected("mistral", "token [TOOL_CALLS]")
    assert detect("{{ messages }}", tokens=["</s>"]) is None


@pytest.mark.parametrize(("template", "name"), [
    ("{% if enable_thinking is false %}<think>\n\n</think>{% endif %}<tool_call>", "qwen3"),
    ("<arg_key>{{ key }}</arg_key>{% if enable_thinking %}<think>", "glm45"),
    ("{% if not thinking %}<｜Assistant｜></think>{% else %}<｜Assistant｜><think>{% endif %}", "deepseek_v3"),
    ("{{ content.split('</think>')[-1] }}<｜Assistant｜>", "deepseek_r1"),
    ("<|im_start|>assistant\n<think>", "deepseek_r1"),
    ("[THINK]{{ reasoning }}[/THINK]", "mistral"),
])  # fmt: skip
def test_the_template_tells_the_format_of_reasoning(template, name):
    assert detect_reasoning_format(ModelFacts(template, "llama", ())) == Detected(name, "chat template")


def test_a_model_that_does_not_reason_has_no_format():
    assert detect_reasoning_format(ModelFacts("{{ messages }}", "llama", ["</s>"])) is None
    assert detect_reasoning_format(ModelFacts(None, None, ["[THINK]"])) == Detected("mistral", "token [THINK]")


def test_every_tool_format_has_a_parser():
    names = {name for name, _ in detection._TOOL_MARKS}
    names |= {*detection._TOOL_TYPES.values(), *detection._TOOL_TOKENS.values(), detection.FALLBACK}
    assert names <= {*TOOL_FORMATS}
