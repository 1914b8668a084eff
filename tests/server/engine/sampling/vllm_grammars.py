"""A script for vLLM's Python, with the words QUESTION ANSWER: finds which texts vLLM's grammars accept.

The question has lists of [kind, specification, texts]. The answer has a list of booleans for each, or null if
vLLM rejects the specification.
"""

import json
import sys
from pathlib import Path

import xgrammar
from llguidance import LLMatcher, LLTokenizer
from vllm.v1.structured_output.backend_guidance import serialize_guidance_grammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features
from xgrammar.testing import _is_grammar_accept_string

_CREATE = {"json": xgrammar.Grammar.from_json_schema, "regex": xgrammar.Grammar.from_regex}


def _answer(kind: str, specification: str, texts: list[str]) -> list[bool] | None:
    try:
        if kind == "json" and has_xgrammar_unsupported_json_features(json.loads(specification)):
            raise RuntimeError
        grammar = _CREATE[kind](specification)
        return [_is_grammar_accept_string(grammar, text) for text in texts]
    except RuntimeError:
        return _answer_guidance(kind, specification, texts)


def _answer_guidance(kind: str, specification: str, texts: list[str]) -> list[bool] | None:
    """Answers with vLLM's second backend, which gets the specifications that the first one rejects."""
    grammar = serialize_guidance_grammar(StructuredOutputOptions[kind.upper()], specification)
    if LLMatcher.validate_grammar(grammar):
        return None
    accepted = []
    for text in texts:
        matcher, token_ids = LLMatcher(LLTokenizer("byte"), grammar), list(text.encode())
        accepted.append(bool(matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()))
    return accepted


question, answer = map(Path, sys.argv[1:])
answer.write_text(json.dumps([_answer(*case) for case in json.loads(question.read_text())]))
