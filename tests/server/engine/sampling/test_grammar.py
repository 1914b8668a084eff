"""Each kind of grammar accepts exactly the texts that it describes, as in vLLM's backend.

A line of schemas.jsonl has a schema with texts that it accepts and rejects. `vllm` says what the backend of
vLLM reads differently.
"""

import json
from pathlib import Path

import pytest

from server.terms.types import GuidedDecoding
from tests.conversations.conversation import read_lines
from tests.server.engine.sampling.grammar_texts import accepted_texts, assert_vllm_accepts, build_grammar
from tests.support.peer_vllm import needs_vllm

CHOICES = ["yes", 'say "hi"', "back\\slash", "tab\there", "new\nline", "naïve", "日本", "😀", "/re/", "a|b", "\x01"]


def test_choices_may_be_more_than_a_rule_can_have_alternatives():
    choices = [f"word {number * 7919 % 10007}" for number in range(5000)]
    guided = GuidedDecoding("choice", json.dumps(choices))
    assert accepted_texts(guided, [choices[0], choices[-1], "word"]) == [choices[0], choices[-1]]


@pytest.mark.parametrize("choice", CHOICES, ids=ascii)
def test_every_choice_is_accepted_exactly(choice):
    guided = GuidedDecoding("choice", json.dumps(CHOICES))
    assert _is_whole(guided, choice)
    assert not _is_whole(guided, choice + "!")


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
        (GuidedDecoding("grammar", "start: ("), "Expected token"),
        (GuidedDecoding("grammar", 'start: unknown "a"'), "unknown"),
        (GuidedDecoding("grammar", ""), "root"),
    ],
    ids=lambda value: f"{value.kind} {value.spec}" if isinstance(value, GuidedDecoding) else "",
)
def test_an_invalid_grammar_is_rejected_with_its_position(guided, message):
    with pytest.raises(ValueError, match=message):
        build_grammar(guided)


ACCEPTED: dict[str, tuple[list[str], list[str]]] = {
    # classes: pattern -> accepted, rejected
    r"\d": (["1"], ["\u0661", "a"]),
    r"\D": (["a", "\u0661", "\n"], ["1"]),
    r"\w": (["a", "_", "9"], ["ä", "\u0661", "-"]),
    r"\W": (["-", "ä", "\n"], ["a"]),
    r"\s": ([" ", "\n", "\t", "\r", "\f", "\v", "\xa0"], ["\u2003", "\u3000", "\u2028"]),
    r"\S": (["a", "\u2003"], [" ", "\xa0", "\v"]),
    r"[\d_]": (["1", "_"], ["\u0661"]),
    r"[^\d]": (["a", "\u0661", "\n"], ["1"]),
    r"[\w-]": (["a", "-"], ["ä"]),
    r"[^\w]": (["ä", "-"], ["a"]),
    r"[\D]": (["a", "\u0661"], ["1"]),
    r"[\S]": (["ä", "\u2003"], [" ", "\v"]),
    r"[\s\S]*": (["", "a\n b\u2003"], []),
    r"[\d-z]": (["5", "-", "z"], ["a"]),
    r"[a-z&&[^b]]": (["a]", "&]", "[]", "^]"], ["1]", "a"]),
    r"[a-z--b]": (["a", "b", "z", "-"], ["!"]),
    r"[a~~b]": (["a", "~", "b"], ["c"]),
    r"[[a]": (["[", "a"], ["b"]),
    r"[a[b]": (["[", "b"], ["c"]),
    r"[\]\-a]": (["]", "-", "a"], ["b", "\\"]),
    r"[a\-z]": (["-", "z"], ["b"]),
    r"[-a]": (["-", "a"], ["b"]),
    r"[.$()*#{]": ([".", "$", "#", "{"], ["a"]),
    r"[\b\0\e\n\cA]": (["\b", "\0", "\x1b", "\n", "\x01"], ["b", "0", "e"]),
    r"[\u0041-\x43]": (["A", "B", "C"], ["D"]),
    r"[^a]": (["b", "\n"], ["a"]),
    r"[^\\\"]": (["a"], ["\\", '"']),
    # any character, anchors, groups
    ".": (["a", "\n", "\r", "😀"], ["", "ab"]),
    "^a$": (["a"], ["^a$", ""]),
    "a^b$c": (["abc"], ["a^b$c"]),
    "(^a)|(b$)": (["a", "b"], ["ab"]),
    "(?:a)(?<n>b)(c)": (["abc"], ["ab"]),
    "()|(|a)": (["", "a"], ["b"]),
    "a||b|": (["", "a", "b"], ["ab"]),
    "": ([""], ["a"]),
    # repetition
    "a*?b+?c??": (["b", "aabbc"], ["a"]),
    "a{2}?b{1,}?c{1,2}?": (["aabc", "aabbbcc"], ["abc", "aabccc"]),
    "a{0}": ([""], ["a"]),
    "(a+)+b": (["aab"], ["aa"]),
    # escapes
    r"\u0041\u{42}\x43\u{1F600}": (["ABC😀"], ["ABC"]),
    r"\n\t\r\f\v\a\e\0": (["\n\t\r\f\v\a\x1b\0"], [""]),
    r"\q\h\R\N\G": (["qhRNG"], ["q"]),
    r"\é\'\"\/\-\_\<\>\ ": (["é'\"/-_<> "], ["é"]),
    r"\.\*\[\]\(\)\{\}\|\^\$\\": (["." + r"*[](){}|^$" + "\\"], ["a*[](){}|^$\\"]),
    r"a]b}c&d~e@f<g>#h /": (["a]b}c&d~e@f<g>#h /"], []),
    'a"b\nä+😀{2}': (['a"b\nää😀😀'], ['a"b\nä😀']),
    r"[\w.-]+@[\w-]+\.[a-z]{2,}": (["a.b@c-d.de"], ["a.b@c_d", "ä@b.de"]),
    # vLLM gives these to llguidance
    "(?i)a": (["a", "A"], ["b"]),
    "(?i:a)b": (["Ab"], ["aB"]),
    "(?P<n>a)": (["a"], ["b"]),
    r"\p{L}": (["a", "ä"], ["1"]),
}
REJECTED = [
    *("a(?=b)b", "a(?!b)c", "(?<=a)b", "(?<!a)b", r"\ba", r"\Ba", r"(a)\1", r"(?<n>a)\k<n>"),
    *("*a", "a{", "a{x}", "a{2,1}", "[a", "[]", "(a", "a)", "[z-a]", r"\u41", r"\x4"),
]
OWN = {
    # what vLLM's backend reads differently, for no good reason: \A is the letter A, a POSIX class is none
    r"\Aa\Z|\Ab\z": (["a", "b"], ["AaZ"]),
    "[[:alpha:]_]": (["a", "_"], [":]", "1"]),
    r"[^]a]": (["b"], ["a", "]"]),
    r"[\p{L}]": (["ä"], ["1"]),
    r"[\^a]": (["^", "a"], ["\\"]),
    r"[^\s]": (["a"], [" ", "\xa0", "\u000b"]),
}


@pytest.mark.parametrize("pattern", [*ACCEPTED, *OWN], ids=ascii)
def test_expression_matches_these_texts(pattern):
    accepted, rejected = (ACCEPTED | OWN)[pattern]
    assert accepted_texts(GuidedDecoding("regex", pattern), accepted + rejected) == accepted


@pytest.mark.parametrize("pattern", REJECTED, ids=ascii)
def test_what_no_backend_supports_is_rejected(pattern):
    with pytest.raises(ValueError):
        build_grammar(GuidedDecoding("regex", pattern))


@pytest.mark.slow
@needs_vllm
def test_vllms_expressions_accept_the_same_texts(tmp_path):
    cases = [("regex", pattern, *texts) for pattern, texts in ACCEPTED.items()]
    assert_vllm_accepts([*cases, *(("regex", pattern, None, []) for pattern in REJECTED)], tmp_path)


def _is_whole(guided: GuidedDecoding, text: str) -> bool:
    return accepted_texts(guided, [text]) == [text]


LINES = [line for _, line in read_lines(Path(__file__).with_name("schemas.jsonl"))]


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for line in LINES])
def test_schema_allows_what_it_lists(line):
    guided = GuidedDecoding("json_schema", json.dumps(line["schema"]))
    assert accepted_texts(guided, line["accepts"] + line["rejects"]) == line["accepts"]


@pytest.mark.slow
@needs_vllm
def test_vllms_schemas_accept_the_same_texts(tmp_path):
    cases = [
        ("json", json.dumps(line["schema"]), line["accepts"], line["rejects"]) for line in LINES if "vllm" not in line
    ]
    assert_vllm_accepts(cases, tmp_path)
