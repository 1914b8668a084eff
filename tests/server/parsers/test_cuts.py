"""However a text is cut, its calls and content are the same; nothing of it is lost or invented."""

import random

import pytest

from server.parsers.registry import load_tool_parser
from tests.server.parsers.formats import FORMATS
from tests.server.parsers.parsed import DEFINITIONS, parse
from tests.server.parsers.pieces import parse_at_all_splits
from tests.server.parsers.raw_texts import raw_texts

TEXT_FORMATS = [form for form in FORMATS if form.name != "openai"]
"""openai is read from tokens."""

every_format = pytest.mark.parametrize("form", TEXT_FORMATS, ids=lambda form: form.name)


@pytest.mark.slow
@every_format
def test_every_cut(form):
    """A cut whose surroundings are those of an earlier one is not made again."""
    seen: set[tuple[str, str]] = set()
    for raw in raw_texts(form):
        around = {(raw.text[max(0, cut - 24) : cut], raw.text[cut : cut + 12]): cut for cut in range(len(raw.text))}
        new = [cut for surroundings, cut in around.items() if surroundings not in seen]
        seen |= around.keys()
        parse_at_all_splits(lambda: load_tool_parser(form.name)(DEFINITIONS), raw.text, new)
    print(f"\n{form.name}: {len(seen)} cuts")


@every_format
def test_some_texts_at_every_cut(form):
    for raw in random.Random(0).sample(raw_texts(form), 8):
        parse_at_all_splits(lambda: load_tool_parser(form.name)(DEFINITIONS), raw.text)


@every_format
def test_nothing_is_invented(form):
    for raw in raw_texts(form):
        rest = iter(raw.text)
        assert all(character in rest for character in parse(form, [raw.text]).content), raw


@every_format
def test_a_text_without_calls_is_content(form):
    for raw in raw_texts(form):
        parsed = parse(form, [raw.text])
        if not parsed.calls:
            assert parsed.content == raw.text


@every_format
def test_damage_loses_no_word(form):
    """A word that is put anywhere is in the content, a name, or the arguments."""
    choose = random.Random(form.name)
    texts = [raw.text for raw in raw_texts(form) if raw.kind == "calls"]
    for text in texts:
        cut = choose.randrange(len(text) + 1)
        parsed = parse(form, [f"{text[:cut]} vanadium {text[cut:]}"])
        assert "vanadium" in repr(parsed), text
