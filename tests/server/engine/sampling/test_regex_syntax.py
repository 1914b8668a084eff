"""Regular expressions match the texts that they match with vLLM's backend."""

import json
from pathlib import Path

import pytest

from server.engine.sampling.grammar import GrammarError, build_grammar
from server.types import GuidedDecoding
from tests.peer_vllm import ask_vllm, needs_vllm
from tests.server.engine.sampling.grammar_texts import accepted_texts
from tests.server.engine.sampling.test_json_schema import SCHEMAS

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
OWN_SCHEMAS = {
    "pattern is searched for": "vLLM's backend reads every pattern as ^(...)$",
    "properties and branches": "vLLM's backend ignores the properties",
    "properties and alternatives of required": "vLLM's backend ignores the properties",
}


@pytest.mark.parametrize("pattern", [*ACCEPTED, *OWN], ids=ascii)
def test_expression_matches_these_texts(pattern):
    accepted, rejected = (ACCEPTED | OWN)[pattern]
    assert accepted_texts(GuidedDecoding("regex", pattern), accepted + rejected) == accepted


@pytest.mark.parametrize("pattern", REJECTED, ids=ascii)
def test_what_no_backend_supports_is_rejected(pattern):
    with pytest.raises(GrammarError):
        build_grammar(GuidedDecoding("regex", pattern))


@pytest.mark.slow
@needs_vllm
def test_vllm_accepts_the_same_texts(tmp_path):
    cases = [("regex", pattern, texts) for pattern, texts in ACCEPTED.items()]
    cases += [("regex", pattern, ([], [])) for pattern in REJECTED]
    cases += [("json", json.dumps(SCHEMAS[name][0]), SCHEMAS[name][1:]) for name in SCHEMAS.keys() - OWN_SCHEMAS]
    asked = [[kind, specification, sum(texts, [])] for kind, specification, texts in cases]
    answers = ask_vllm(Path(__file__).with_name("vllm_grammars.py"), asked, tmp_path)
    for (_, specification, (accepted, rejected)), answer in zip(cases, answers, strict=True):
        expected = None if specification in REJECTED else [True] * len(accepted) + [False] * len(rejected)
        assert answer == expected, specification
