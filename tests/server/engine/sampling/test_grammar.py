"""Each kind of grammar accepts exactly the texts it describes, and invalid ones are rejected.

JSON schemas: test_json_schema.py.
"""

import json

import pytest

from server.engine.sampling.grammar import GrammarError, build_grammar
from server.types import GuidedDecoding
from tests.server.engine.sampling.grammar_texts import accepted_texts

CHOICES = ["yes", 'say "hi"', "back\\slash", "tab\there", "new\nline", "naïve", "日本", "😀", "/re/", "a|b", "\x01"]


@pytest.mark.parametrize("text", ["{}", '{"a": [1, {"b": null}], "c": "d"}', '{\n  "a": -1.5e3\n}', '{"ü": "\\"\\n"}'])
def test_any_json_object_is_accepted(text):
    assert _is_whole(GuidedDecoding("json_object"), text)


@pytest.mark.parametrize("text", ["[1]", "1", '"a"', "{a: 1}", '{"a": 1,}', "{'a': 1}", "{}{}", "null"])
def test_anything_but_a_json_object_is_rejected(text):
    assert not _is_whole(GuidedDecoding("json_object"), text)


def test_choices_may_be_more_than_a_rule_can_have_alternatives():
    choices = [f"word {number * 7919 % 10007}" for number in range(5000)]
    guided = GuidedDecoding("choice", json.dumps(choices))
    assert accepted_texts(guided, [choices[0], choices[-1], "word"]) == [choices[0], choices[-1]]


@pytest.mark.parametrize("choice", CHOICES, ids=ascii)
def test_every_choice_is_accepted_exactly(choice):
    guided = GuidedDecoding("choice", json.dumps(CHOICES))
    assert _is_whole(guided, choice)
    assert not _is_whole(guided, choice + "!")


@pytest.mark.parametrize("text", ["ye", "no", "yes ", "YES", "re", "a", "b", "say hi", "\\u00ef"])
def test_other_texts_are_rejected(text):
    assert not _is_whole(GuidedDecoding("choice", json.dumps(CHOICES)), text)


@pytest.mark.parametrize(
    ("pattern", "accepted", "rejected"),
    [
        (r"[a-z]{3}\d+", ["abc1", "xyz0123"], ["ab1", "abc", "abcd1", "abc1x"]),
        (r"^(https?|ftp)://[\w.]+/?$", ["http://a.b", "ftp://c/"], ["http:/a", "x http://a.b"]),
        ("", [""], ["a"]),
        ("ä|😀+", ["ä", "😀😀"], ["a", "ä😀"]),
    ],
)
def test_a_regex_is_matched_as_a_whole(pattern, accepted, rejected):
    guided = GuidedDecoding("regex", pattern)
    assert [text for text in accepted + rejected if _is_whole(guided, text)] == accepted


@pytest.mark.parametrize(
    "grammar",
    ['start: sum\nsum: NUM ("+" NUM)*\nNUM: /[0-9]+/', 'root ::= num ("+" num)*\nnum ::= [0-9]+'],
    ids=["lark", "gbnf"],
)
def test_lark_and_gbnf_grammars_are_supported(grammar):
    guided = GuidedDecoding("grammar", grammar)
    assert _is_whole(guided, "1+22+3")
    assert not _is_whole(guided, "1++2")
    assert not _is_whole(guided, "1+")


@pytest.mark.parametrize(
    ("guided", "message"),
    [
        (GuidedDecoding("json_schema", '{"type": "nonsense"}'), "nonsense"),
        (GuidedDecoding("json_schema", '{"$ref": "#/$defs/none"}'), "none"),
        (GuidedDecoding("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (GuidedDecoding("json_schema", "[]"), "object"),
        (GuidedDecoding("json_schema", "{"), "line 1"),
        (GuidedDecoding("regex", "(unclosed"), "unclosed group"),
        (GuidedDecoding("choice", "[]"), "one or more"),
        (GuidedDecoding("choice", '["a", 1]'), "one or more texts"),
        (GuidedDecoding("choice", '{"a": 1}'), "one or more texts"),
        (GuidedDecoding("choice", "no json"), "Expecting value"),
        (GuidedDecoding("grammar", "start: ("), "Expected token"),
        (GuidedDecoding("grammar", 'start: unknown "a"'), "unknown"),
        (GuidedDecoding("grammar", ""), "root"),
    ],
    ids=lambda value: f"{value.kind} {value.spec}" if isinstance(value, GuidedDecoding) else "",
)
def test_an_invalid_grammar_is_rejected_with_its_position(guided, message):
    with pytest.raises(GrammarError, match=message):
        build_grammar(guided)


def _is_whole(guided: GuidedDecoding, text: str) -> bool:
    return accepted_texts(guided, [text]) == [text]
