"""The parser reads each character of an output a limited number of times, which is counted."""

from typing import Any

import pytest

from server.text.parsers import output_parser
from server.text.parsers.formats import REASONING_FORMATS, TOOL_FORMATS
from server.text.parsers.output_parser import IncomingText, OutputParser, PromptEnd
from tests.server.text.parsers.transcripts import FUNCTIONS, TRANSCRIPTS
from tests.support.tiers import thorough_but_for

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
