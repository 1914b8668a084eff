"""Formats of tool calls: those that templates, types and tokens name, and a model's own template."""

import json
from pathlib import Path

import pytest
from transformers.utils.chat_parsing import parse_response

from server.generation.reasoning import load_reasoning
from server.terms.config import ModelFiles, RendererConfig
from server.terms.server_config import TOOL_FORMATS, GenerationConfig
from server.text.parsers import detection
from server.text.parsers.detection import Detected, ModelFacts, detect_reasoning_format, detect_tool_format
from server.text.parsers.output_parser import OutputParser, Reasoning
from server.text.parsers.own_template import read_response_template
from server.text.renderers.renderer import Renderer
from tests.conversations.conversation import read_lines
from tests.server.text.parsers.test_output_parser import all_cuts
from tests.server.text.parsers.transcripts import FUNCTIONS, read_parts
from tests.support.llamas import save_tiny_llama

TEMPLATES = {line["name"]: line["template"] for _, line in read_lines(Path(__file__).with_name("own_templates.jsonl"))}
QWEN, XML, GEMMA, LISTED = (TEMPLATES[name] for name in ("QWEN", "XML", "GEMMA", "LISTED"))
CALL = '<tool_call>\n{"name": "now", "arguments": {"a": "é"}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=get_weather>\n<parameter=city>\n1\n</parameter>\n<parameter=days>2</parameter>"


def parse(template, text):
    tools, reasoning = read_response_template(template)
    parts = None
    for pieces in all_cuts(text):
        parser = OutputParser(FUNCTIONS, tools=tools, reasoning=reasoning)
        events = [event for piece in pieces for event in parser.feed(piece)]
        cut = read_parts([*events, *parser.finish()])
        assert parts in (None, cut), pieces
        parts = cut
    return parts


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (QWEN, f"<think>\nHm\n</think>\n\nYes.{CALL}\n{CALL}<|im_end|>"),
        (QWEN, "Yes <think"),
        (QWEN, "<think>Hm"),
        (
            GEMMA,
            '<|channel>thought\nHm<channel|>Yes<|tool_call>call:search{query:<|"|>{é<|"|>,tags:[]}<tool_call|><turn|>',
        ),
        (XML, f"Hm</think><answer>Yes</answer>{XML_CALL}\n</function>\n</tool_call>"),
        (LISTED, '[C][{"name": "now", "arguments": {}}, {"name": "f", "arguments": {"a": 1}}]'),
    ],
)
def test_results_are_transformers(template, text):
    tools = [{"name": name, "parameters": parameters} for name, parameters in FUNCTIONS.items()]
    prefix = "<a>" if template is XML else ""
    message = parse_response(text, template, prefix=prefix, tools=tools)
    calls = [call for each in message.get("tool_calls", ()) for call in (each if isinstance(each, list) else [each])]
    parts = parse(template, text)
    assert "".join(part.text for part in parts if isinstance(part, Reasoning)).strip() == message.get("thinking", "")
    assert "".join(part for part in parts if isinstance(part, str)).strip() == message.get("content", "")
    functions = [call.get("function", call) for call in calls]
    assert [part for part in parts if type(part) is tuple] == [(each["name"], each["arguments"]) for each in functions]


@pytest.mark.parametrize("body", ['{"name": 1}', "{", '{"name": "f"}', '"f"', '{"name": "f", "arguments": 1}'])
def test_malformed_calls_are_content(body):
    assert parse(QWEN, f"a <tool_call>{body}</tool_call>") == [f"a <tool_call>{body}</tool_call>"]


@pytest.mark.parametrize("values", ['<|"|>a<|"|>,' * 2000, *("[" * depth + "]" * depth for depth in (250, 950, 5000))])
def test_calls_that_cost_much_are_content(values):
    parser = OutputParser(FUNCTIONS, tools=read_response_template(GEMMA)[0])
    text = f"<|tool_call>call:f{{a:[{values}]}}<tool_call|>"
    assert "".join(event[0] for event in [*parser.feed(text), *parser.finish()]) in (text, "f" + text[18:-12])


def test_a_long_name_is_not_held_back():
    tools, _ = read_response_template(GEMMA)
    parser = OutputParser(FUNCTIONS, tools=tools)
    parser.feed("<|tool_call>call:")
    assert sum(len(event.text) for _ in range(1000) for event in parser.feed("a" * 9)) > 7_000


def test_auto_prefers_the_template_and_ignores_a_malformed_one(tmp_path, caplog):
    folder = save_tiny_llama(tmp_path)
    config = folder / "tokenizer_config.json"
    empty = QWEN | {"fields": QWEN["fields"] | {"content": {"close_pattern": "x*"}}}
    for template in (QWEN, {"fields": []}, empty):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"response_template": template}))
        with Renderer(ModelFiles(folder, folder), RendererConfig()) as renderer, caplog.at_level("INFO"):
            found = load_reasoning(GenerationConfig(reasoning_parser="auto"), renderer)
        assert (found is not None) == (template is QWEN)
    assert "the model's own response_template" in caplog.text
    assert "response_template is ignored: response_template.fields must be" in caplog.text
    assert "'x*' may match an empty text" in caplog.text
    assert ModelFacts(None, None, ()).own_formats() == (None, None)


def detect(template=None, model_type="llama", tokens=()):
    return detect_tool_format(ModelFacts(template, model_type, tokens))


@pytest.mark.parametrize(
    ("template", "name"),
    [
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
    ],
)
def test_the_template_tells_the_format(template, name):
    assert detect(template, tokens=["<|python_tag|>"]) == Detected(name, "chat template")


def test_the_type_or_a_token_tells_the_format_that_the_template_does_not():
    assert detect("{{ messages }}", "gpt_oss") == Detected("openai", "model_type")
    assert detect(None, tokens=["</s>", "[TOOL_CALLS]"]) == Detected("mistral", "token [TOOL_CALLS]")
    assert detect("{{ messages }}", tokens=["</s>"]) is None


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if enable_thinking is false %}<think>\n\n</think>{% endif %}<tool_call>", "qwen3"),
        ("<arg_key>{{ key }}</arg_key>{% if enable_thinking %}<think>", "glm45"),
        ("{% if not thinking %}<｜Assistant｜></think>{% else %}<｜Assistant｜><think>{% endif %}", "deepseek_v3"),
        ("{{ content.split('</think>')[-1] }}<｜Assistant｜>", "deepseek_r1"),
        ("<|im_start|>assistant\n<think>", "deepseek_r1"),
        ("[THINK]{{ reasoning }}[/THINK]", "mistral"),
    ],
)
def test_the_template_tells_the_format_of_reasoning(template, name):
    assert detect_reasoning_format(ModelFacts(template, "llama", ())) == Detected(name, "chat template")


def test_a_model_that_does_not_reason_has_no_format():
    assert detect_reasoning_format(ModelFacts("{{ messages }}", "llama", ["</s>"])) is None
    assert detect_reasoning_format(ModelFacts(None, None, ["[THINK]"])) == Detected("mistral", "token [THINK]")


def test_every_tool_format_has_a_parser():
    names = {name for name, _ in detection._TOOL_MARKS}
    names |= {*detection._TOOL_TYPES.values(), *detection._TOOL_TOKENS.values(), detection.FALLBACK}
    assert names <= {*TOOL_FORMATS}
