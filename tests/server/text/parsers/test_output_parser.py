"""The parser finds the same wherever an output is cut, loses no text, and reads no character often."""

import random
import re
from itertools import pairwise
from typing import Any

import pytest

from server.terms import server_config
from server.text.parsers import output_parser
from server.text.parsers.formats import REASONING_FORMATS, TOOL_FORMATS
from server.text.parsers.output_parser import (
    CallArguments,
    CallStart,
    Content,
    IncomingText,
    OutputParser,
    PromptEnd,
    Reasoning,
)
from tests.server.text.parsers.transcripts import FUNCTIONS, TRANSCRIPTS, Transcript
from tests.support.marks import thorough_but_for
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


SIZES = (512, 1024, 2048)
TOKEN = 16
MOST_SCANS = 80
"""The most often that a character is read: once for each token that arrives while it is held back."""
FILLERS = (" ", '\\"', "<", "[{", "a,")


class Counter:
    """Counts the characters that are copied, or read by patterns and by readers of calls."""

    def __init__(self) -> None:
        self.characters = 0

    def read(self, opening: Any, text: str, functions: Any) -> Any:
        self.characters += len(text)
        raise ValueError

    def incoming_text(self) -> IncomingText:
        counter = self

        class Pattern:
            def __init__(self, pattern: Any) -> None:
                self._pattern = pattern

            def search(self, text: str, position: int, partial: bool) -> Any:
                return self._count(self._pattern.search(text, position, partial=partial), text, position)

            def match(self, text: str, position: int, partial: bool) -> Any:
                return self._count(self._pattern.match(text, position, partial=partial), text, position)

            def _count(self, found: Any, text: str, position: int) -> Any:
                counter.characters += 1 + (len(text) if found is None or found.partial else found.end()) - position
                return found

        class Counted(IncomingText):
            def add(self, text: str) -> None:
                super().add(text)
                counter.characters += len(self._text)

            def find(self, pattern: Any, passed: Any) -> Any:
                return super().find(Pattern(pattern), passed)  # type: ignore[arg-type]

            def expect(self, pattern: Any) -> Any:
                return super().expect(Pattern(pattern))  # type: ignore[arg-type]

        return Counted()


def num_scanned(monkeypatch: pytest.MonkeyPatch, text: str, size: int, **formats: Any) -> int:
    """The number of characters that are read for a text in pieces of this size."""
    counter = Counter()
    monkeypatch.setattr(output_parser, "IncomingText", counter.incoming_text)
    if tools := formats.get("tools"):
        formats["tools"] = tools._replace(read=counter.read)
    parser = OutputParser(FUNCTIONS, **formats)
    for at in range(0, len(text), size):
        parser.feed(text[at : at + size])
    parser.finish()
    return counter.characters


def hostile_texts(text: str) -> list[tuple[str, str]]:
    """Beginnings, and what is repeated after them: the text, a part of it, or a character that may matter."""
    marks = [at for at in range(1, len(text)) if not text[at].isalnum() and text[at - 1].isalnum()]
    cuts = sorted({0, *(marks[len(marks) * part // 4] for part in (1, 3) if marks)})
    return [(text[:cut], filler) for cut in cuts for filler in (*FILLERS, text, text[:cut]) if filler]


def assert_linear(monkeypatch: pytest.MonkeyPatch, text: str, **formats: Any) -> None:
    for begin, unit in hostile_texts(text):
        for size in (TOKEN, 1 << 20):
            texts = [begin + (unit * (n // len(unit) + 1))[:n] for n in SIZES]
            counts = [num_scanned(monkeypatch, each, size, **formats) for each in texts]
            assert counts[2] - counts[1] <= 2.2 * (counts[1] - counts[0]) + 2 * MOST_SCANS * TOKEN, (begin, unit, size)
            assert counts[2] <= MOST_SCANS * len(texts[2]), (begin, unit, size)


NAMES = {form: name for name, form in TOOL_FORMATS.items()}.values()
"""One name of each format."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_scans_for_calls_are_linear(name, monkeypatch):
    form = TOOL_FORMATS[name]
    texts = [one.text for one in TRANSCRIPTS if one.tools and TOOL_FORMATS.get(one.tools) is form]
    assert_linear(monkeypatch, max(texts, key=len), tools=form)


@pytest.mark.parametrize("name", thorough_but_for(REASONING_FORMATS, "openai_gptoss", "granite"))
def test_scans_for_reasoning_are_linear(name, monkeypatch):
    form = REASONING_FORMATS[name]
    assert_linear(monkeypatch, f"{form.starts[0]}a{form.ends[0]}b", reasoning=form, prompt_end=PromptEnd.OPEN)
