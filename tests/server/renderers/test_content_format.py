"""The content format of chat templates; vLLM 0.32 decides the same for each of these."""

import pytest

from server.renderers.hf import detect_content_format
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer

MESSAGES = "{% for message in messages %}BODY{% endfor %}"
PARTS = "{% for part in message.content %}{{ part.text }}{% endfor %}"

STRING = {
    "content is written": MESSAGES.replace("BODY", "{{ message.content }}"),
    "another field is looped over": MESSAGES.replace("BODY", "{% for c in message.tool_calls %}{{ c }}{% endfor %}"),
    "tools are looped over": "{% for tool in tools %}{{ tool }}{% endfor %}" + MESSAGES.replace("BODY", "x"),
    "lines are looped over": MESSAGES.replace("BODY", "{% for x in message.content.split('y') %}{{ x }}{% endfor %}"),
    "a macro loops over something else": (
        "{% macro show(content) %}{% for item in content %}{{ item }}{% endfor %}{% endmacro %}{{ show(tools) }}"
        + MESSAGES.replace("BODY", "{{ message.content }}")
    ),
    "targets are unpacked": "{% set a, b = 1, 2 %}{% for x, y in tools.items() %}{{ x }}{% endfor %}",
    "there is a generation block": MESSAGES.replace("BODY", "{% generation %}{{ message.content }}{% endgeneration %}"),
    "there is no loop": "{{ messages[0].content }}",
    "it is broken": "{% for %}",
}

OPENAI = {
    "attribute": MESSAGES.replace("BODY", PARTS),
    "item": MESSAGES.replace("BODY", PARTS.replace("message.content", "message['content']")),
    "filter": MESSAGES.replace("BODY", PARTS.replace("message.content", "message.content | selectattr('text')")),
    "if not a string": MESSAGES.replace(
        "BODY", "{% if message.content is string %}x{% else %}" + PARTS + "{% endif %}"
    ),
    "slice of messages": MESSAGES.replace("in messages", "in messages[1:]").replace("BODY", PARTS),
    "other name of messages": (
        "{% set rest = messages[1:] %}{% set all = rest %}" + MESSAGES.replace("in messages", "in all")
    ).replace("BODY", PARTS),
    "variable named content": MESSAGES.replace("BODY", "{% set content = message.content %}PARTS").replace(
        "PARTS", PARTS.replace("message.content", "content")
    ),
    "macro": "{% macro show(x) %}{% for part in x %}{{ part.text }}{% endfor %}{% endmacro %}"
    + MESSAGES.replace("BODY", "{{ show(message['content']) }}"),
    "macro with keyword": "{% macro show(y, x=none) %}{% for part in x %}{{ part.text }}{% endfor %}{% endmacro %}"
    + MESSAGES.replace("BODY", "{{ show(1, x=message['content']) }}"),
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        *(pytest.param(template, "string", id=name) for name, template in STRING.items()),
        *(pytest.param(template, "openai", id=name) for name, template in OPENAI.items()),
    ],
)
def test_the_format_is_found(template, expected, renderers):
    tokenizer = renderers["byte_level"].tokenizer
    assert isinstance(tokenizer, HfTokenizer)
    assert detect_content_format(tokenizer.loaded, template) == expected
