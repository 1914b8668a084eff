"""gpt-oss's format, which is read from tokens."""

import pytest

from server.parsers.base import CallArguments, CallStart, Reasoning
from server.parsers.registry import load_tool_parser
from tests.server.parsers.formats import FORMATS
from tests.server.parsers.parsed import DEFINITIONS, join
from tests.server.parsers.raw_texts import raw_texts

pytest.importorskip("openai_harmony")

FORM = next(form for form in FORMATS if form.name == "openai")
CALL = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"


def events_of(text):
    parser = load_tool_parser("openai")(DEFINITIONS)
    events = [event for token_id in FORM.tokenize(text) for event in parser.feed("", [token_id])]
    return [*events, *parser.finish()]


def test_reasoning_calls_and_content():
    final = "<|start|>assistant<|channel|>final<|message|>é🙂<|return|>"
    events = events_of(f"<|channel|>analysis<|message|>Hm<|end|><|start|>assistant{CALL}{final}")
    assert events[:3] == [Reasoning("Hm"), CallStart("now"), CallArguments("{}")]
    assert join(events).content == "é🙂"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Hello", "Hello"),
        ("<|channel|>final", "<|channel|>final"),
        ("<|channel|>final<|message|>a<|return|>b", "ab"),
        (f"{CALL}oops", "oops"),
    ],
)
def test_malformed_messages_are_content(text, content):
    assert join(events_of(text)).content == content


def test_messages_to_built_in_tools_are_dropped():
    assert events_of("<|channel|>commentary to=browser.search code<|message|>x<|call|>") == []


def test_one_token_at_a_time_or_all_at_once():
    for raw in raw_texts(FORM):
        parser = load_tool_parser("openai")(DEFINITIONS)
        at_once = join([*parser.feed(raw.text, FORM.tokenize(raw.text)), *parser.finish()])
        assert at_once == join(events_of(raw.text))
