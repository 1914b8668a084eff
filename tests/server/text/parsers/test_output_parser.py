"""The parser finds the same reasoning, content and calls, wherever the output is cut. It loses no text."""

import random
import re
from itertools import pairwise

import pytest

from server.terms import server_config
from server.text.parsers.formats import REASONING_FORMATS, TOOL_FORMATS
from server.text.parsers.output_parser import CallArguments, CallStart, Content, OutputParser, Reasoning
from tests.server.text.parsers.transcripts import FUNCTIONS, TRANSCRIPTS, Transcript
from tests.support.properties import given, pieces, st


def all_cuts(text):
    """Every split in two, pieces of equal lengths, and some random cuts."""
    yield from ([text[:cut], text[cut:]] for cut in range(len(text) + 1))
    yield from ([text[at : at + size] for at in range(0, len(text), size)] for size in (1, 2, 3, 5, 8))
    choose = random.Random(0)
    for _ in range(5):
        cuts = sorted(choose.choices(range(len(text) + 1), k=5))
        yield [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda one: f"{one.tools or ''} {one.reasoning or ''}".strip())
def test_the_parts_of_a_transcript_are_the_same_for_all_cuts(transcript):
    for cut in all_cuts(transcript.text):
        assert transcript.parse(cut) == transcript.parts, cut


def test_every_format_has_a_transcript():
    formats = [TOOL_FORMATS[one.tools] for one in TRANSCRIPTS if one.tools in TOOL_FORMATS]
    assert all(form in formats for form in TOOL_FORMATS.values())
    assert TOOL_FORMATS.keys() == {*server_config.TOOL_FORMATS}
    assert REASONING_FORMATS.keys() == {*server_config.REASONING_FORMATS}


WITH_CALLS = [one for one in TRANSCRIPTS if one.tools in TOOL_FORMATS and one.tools != "openai" and not one.reasoning]


@pytest.mark.parametrize("transcript", WITH_CALLS, ids=lambda one: one.tools)
def test_every_beginning_of_a_text_has_the_same_parts_for_all_cuts_and_loses_nothing(transcript):
    for end in range(0, len(transcript.text), 5):
        text = transcript.text[:end]
        parts = transcript.parse([text])
        assert parts == transcript.parse(text)
        assert not text or parts == [text] or any(isinstance(part, tuple) for part in parts) or text.isspace()


MARKS = re.compile(r"<[^<>]*>|\[[A-Z_]+\]|[\[\]{}()\"':,=]")


@given(st.sampled_from(TRANSCRIPTS), st.data())
def test_damaged_texts_have_the_same_parts_for_all_cuts_and_lose_no_word(transcript: Transcript, data: st.DataObject):
    marks = [found.span() for found in MARKS.finditer(transcript.text)] or [(0, 0)]
    begin, end = data.draw(st.sampled_from(marks))
    other = transcript.text[slice(*data.draw(st.sampled_from(marks)))]
    new = data.draw(st.sampled_from(["", other, transcript.text[begin:end] * 2, "<x", " vanadium ", "\n"]))
    text = transcript.text[:begin] + new + transcript.text[end:]
    assert transcript.parse(data.draw(pieces(text))) == transcript.parse([text])
    assert "vanadium" not in text or transcript.tools == "forced" or "vanadium" in repr(transcript.parse([text]))


def test_reasoning_and_content_come_as_they_arrive():
    parser = OutputParser(FUNCTIONS, tools=TOOL_FORMATS["hermes"], reasoning=REASONING_FORMATS["qwen3"])
    assert parser.feed("<think>Hm") == [Reasoning("Hm")]
    assert parser.feed(" so</th") == [Reasoning(" so")]
    assert parser.feed("ink>") == []
    assert parser.feed("Yes") == [Content("Yes")]
    assert parser.feed(', <tool_call>{"name": "now", ') == [Content(", ")]
    assert parser.feed('"arguments": {}}\n') == [CallStart("now"), CallArguments("{}")]
    assert OutputParser(named_function="f").feed("{") == [CallStart("f"), CallArguments("{")]


@pytest.mark.thorough
@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_little_text_is_held_back(name):
    parser = OutputParser(FUNCTIONS, tools=TOOL_FORMATS[name])
    reported = 0
    for index in range(3000):
        reported += sum(len(event.text) for event in parser.feed(" < {[('\"a") if isinstance(event, Content))
        assert reported >= index * 9 - 1024


def test_ids_of_mistral_are_those_that_its_tokenizers_accept():
    (start, _) = OutputParser(tools=TOOL_FORMATS["mistral"]).feed("[TOOL_CALLS]f[ARGS]{} ")
    assert re.fullmatch("[a-zA-Z0-9]{9}", start.id)
    (start, _) = OutputParser(tools=TOOL_FORMATS["mistral"]).feed("[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{} ")
    assert start == CallStart("f", "123456789")


@pytest.mark.parametrize(
    ("name", "kwargs", "is_used"),
    [
        ("qwen3", {}, True),
        ("qwen3", {"enable_thinking": False}, False),
        ("deepseek_v3", {}, False),
        ("deepseek_v3", {"thinking": True}, True),
        ("deepseek_v3", {"enable_thinking": True, "thinking": False}, True),
        ("holo2", {}, True),
        ("holo2", {"thinking": False}, False),
        ("step3p5", {"enable_thinking": False}, True),
    ],
)
def test_template_variables_switch_reasoning_off(name, kwargs, is_used):
    assert REASONING_FORMATS[name].is_used(kwargs) is is_used
