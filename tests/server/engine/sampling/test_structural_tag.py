"""Structural tags accept the texts that they accept with vLLM's backend."""

import json
from typing import Any

import pytest

from server.engine.sampling.grammar import GrammarError
from server.engine.sampling.structural_tag import structural_tag_grammar
from server.types import GuidedDecoding
from tests.peer_vllm import needs_vllm
from tests.server.engine.sampling.grammar_texts import accepted_texts, assert_vllm_accepts, build_grammar

Format = dict[str, Any]

ANY = {"type": "any_text"}
NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
PERSON = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
EBNF = {"type": "grammar", "grammar": 'root ::= "a" b\nb ::= [0-9]+'}


def tag(begin: str, content: Format, end: str | list[str]) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def const(value: str) -> Format:
    return {"type": "const_string", "value": value}


def sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def triggered(**options: Any) -> Format:
    tags = [tag("<f=a>", NUMBER, "</f>"), tag("<f=b>", ANY, "</f>")]
    return {"type": "triggered_tags", "triggers": ["<f="], "tags": tags, **options}


def separated(separator: str = ",", **options: Any) -> Format:
    tags = [tag("<a>", NUMBER, "</a>"), tag("<b>", ANY, "</b>")]
    return {"type": "tags_with_separator", "tags": tags, "separator": separator, **options}


def nested_tags(depth: int) -> Format:
    content = nested_tags(depth - 1) if depth > 1 else const("")
    return {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag("<t>", content, "</t>")], "at_least_one": True}


def ended_alternatives(size: int) -> Format:
    return tag("", {"type": "or", "elements": [const(f"{number:04}") for number in range(size)]}, "end" * size)


def excluding_triggers(size: int) -> Format:
    triggers = [f"{number:04}" for number in range(size)]
    tags = [tag(trigger, const(""), "") for trigger in triggers]
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags, "excludes": ["text" * size]}


LONG = "end" * 40
CALL, TWO_CALLS = "<f=a>1</f>", "x<f=a>1</f>y<f=b>z</f>"
TAGS: dict[str, tuple[Format, list[str], list[str]]] = {
    "triggered": (triggered(), ["", "hi", CALL, TWO_CALLS], ["<f=a>x</f>", "<f=c>", "<f=a>1", CALL + "<f="]),
    "at least one": (triggered(at_least_one=True), [CALL, CALL + "y<f=b>z</f>w"], ["", "hi", "x" + CALL]),
    "stops after first": (triggered(stop_after_first=True), ["", "hi", CALL, "x" + CALL], [CALL + "y"]),
    "exactly one": (
        triggered(at_least_one=True, stop_after_first=True),
        [CALL],
        ["", "hi", "x" + CALL, CALL + "y", CALL + CALL],
    ),
    "triggered without a text": (triggered(excludes=["!", "no"]), ["hi", "n" + CALL], ["hi!", "no", "x!" + CALL]),
    "triggered in a tag": (
        tag("<t>", triggered(), "</t>"),
        ["<t></t>", "<t>hi</t>", f"<t>x{CALL}y</t>", f"<t>{CALL}</t>"],
        ["<t>hi", "<t>hi</t>x", f"<t>{CALL}"],
    ),
    "reasoning, then calls": (
        sequence(tag("<think>", ANY, "</think>"), triggered()),
        ["<think></think>", f"<think>\n</think>b{CALL}"],
        ["b", CALL, "<think>"],
    ),
    "two triggers": (
        {
            "type": "triggered_tags",
            "triggers": ["<f", "<g"],
            "tags": [tag("<f>", NUMBER, "</f>"), tag("<g>", NUMBER, "</g>")],
        },
        ["a<f>1</f>b<g>2</g>c", "a<g>1</g>"],
        ["<gx", "<f>1</g>"],
    ),
    "any text": (ANY, ["", "x\ny"], []),
    "any text without some": (ANY | {"excludes": ["ab", "c"]}, ["", "x\ny", "a"], ["ab", "xabx", "c"]),
    "several ends": (tag("<t>", ANY, ["</t>", "</u>"]), ["<t>x</t>", "<t>x</u>"], ["<t>x", "<t>x</t></u>"]),
    "a long end": (
        tag("<t>", {"type": "or", "elements": [ANY, const("a"), {"type": "regex", "pattern": "b*"}]}, LONG),
        ["<t>x" + LONG, "<t>a" + LONG, "<t>bb" + LONG, "<t>" + LONG],
        ["<t>", "<t>x", "<t>a", f"<t>{LONG}x"],
    ),
    "a long end, or none": (tag("<t>", const("a"), ["", LONG]), ["<t>a", "<t>a" + LONG], ["<t>ax"]),
    "nested triggered tags": (
        nested_tags(2),
        ["<t><t></t></t>", "<t><t></t>x</t>y<t><t></t></t>z"],
        ["", "<t></t>", "<t>x<t></t></t>", "x<t><t></t></t>"],
    ),
    "regex in a tag": (
        tag("<t>", {"type": "regex", "pattern": r"\w*"}, "</t>"),
        ["<t></t>", "<t>a1</t>"],
        ["<t>-</t>", "<t>\u0661</t>"],
    ),
    "any regex in a tag": (tag("<t>", {"type": "regex", "pattern": ".*"}, "</t>"), ["<t>/\n</t>"], ["<t>"]),
    "regex and text": (sequence({"type": "regex", "pattern": "a*"}, const("ab")), ["ab", "aab"], ["b"]),
    "constants": (sequence(const('a"\n\\'), NUMBER, const(";é")), ['a"\n\\12;é'], ['a"\n\\12', 'a"\n\\;é']),
    "text before a constant": (sequence(ANY, const("END"), NUMBER), ["xEND1", "END1"], ["x", "xENDy"]),
    "or": ({"type": "or", "elements": [const("x"), NUMBER, tag("<", ANY, ">")]}, ["x", "1", "<a>"], ["y", "x1"]),
    "separated": (
        separated(),
        ["", "<a>1</a>", "<a>1</a>,<b>x</b>"],
        ["<a>1</a><b>x</b>", "<a>1</a>,", "x"],
    ),
    "at least one separated": (separated(at_least_one=True), ["<a>1</a>", "<a>1</a>,<a>2</a>"], [""]),
    "one separated": (separated(stop_after_first=True), ["", "<a>1</a>"], ["<a>1</a>,<a>2</a>"]),
    "separated by nothing": (separated(""), ["", "<a>1</a><b>x</b>"], ["<a>1</a>,<b>x</b>"]),
    "optional": ({"type": "optional", "content": const("ab")}, ["", "ab"], ["abab"]),
    "star": ({"type": "star", "content": tag("<", NUMBER, ">")}, ["", "<1>", "<1><2>"], ["<1"]),
    "plus": ({"type": "plus", "content": tag("<", NUMBER, ">")}, ["<1>", "<1><2>"], [""]),
    "repeat": ({"type": "repeat", "min": 1, "max": 2, "content": const("ab")}, ["ab", "abab"], ["", "ababab"]),
    "repeat without limit": ({"type": "repeat", "min": 2, "max": -1, "content": const("a")}, ["aa", "aaa"], ["a"]),
    "schema": (PERSON, ["{}", '{ "a" :1}'], ['{"a":1,"b":1}']),
    "any value": ({"type": "json_schema", "json_schema": True}, ["1", '{"a":1}'], ["x"]),
    "grammar": (EBNF, ["a1", "a12"], ["a", "b"]),
    "grammar in a tag": (sequence(tag("<t>", EBNF, "</t>"), EBNF), ["<t>a1</t>a2"], ["<t>a1</t>"]),
}
INVALID: dict[str, Any] = {
    "unknown": {"type": "nonsense"},
    "no type": {},
    "no content": {"type": "tag", "begin": "<a>", "end": ""},
    "empty sequence": sequence(),
    "empty or": {"type": "or", "elements": []},
    "no triggers": triggered(triggers=[]),
    "no tags": triggered(tags=[]),
    "a tag without its trigger": triggered(triggers=["<g"]),
    "a schema that does not compile": {"type": "json_schema", "json_schema": {"type": "nonsense"}},
    "a broken expression": {"type": "regex", "pattern": "("},
}
LEGACY = {
    "structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}],
    "triggers": ["<f="],
}


@pytest.mark.parametrize("name", TAGS)
def test_structural_tag_accepts_these_texts(name):
    given, accepted, rejected = TAGS[name]
    guided = _structural_tag({"type": "structural_tag", "format": given})
    assert accepted_texts(guided, accepted + rejected) == accepted


def test_older_form_is_supported():
    texts = ["", f"x{CALL}y{CALL}", "<f=b>", "<f=a>x</f>"]
    assert accepted_texts(_structural_tag(LEGACY), texts) == texts[:2]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_format_is_rejected(name):
    with pytest.raises(GrammarError):
        build_grammar(_structural_tag({"format": INVALID[name]}))


@pytest.mark.parametrize("spec", [{}, {"structures": []}, {"structures": [{"begin": "a"}], "triggers": ["a"]}], ids=str)
def test_incomplete_tag_is_rejected(spec):
    with pytest.raises(GrammarError):
        build_grammar(_structural_tag(spec))


@pytest.mark.parametrize("write", [nested_tags, ended_alternatives, excluding_triggers])
def test_grammar_is_as_long_as_the_tag(write):
    def length(size: int) -> int:
        return len(structural_tag_grammar(json.dumps({"format": write(size)})))

    for size in (6, 12, 24, 48, 96):
        assert length(size) <= 2.5 * length(size // 2)


@pytest.mark.slow
@needs_vllm
def test_vllms_structural_tags_accept_the_same_texts(tmp_path):
    cases = [*TAGS.values(), *((given, None, []) for given in INVALID.values())]
    asked = [("structural_tag", _structural_tag({"type": "structural_tag", "format": f}).spec, *t) for f, *t in cases]
    assert_vllm_accepts(asked, tmp_path)


def _structural_tag(spec: Format) -> GuidedDecoding:
    return GuidedDecoding("structural_tag", json.dumps(spec))
