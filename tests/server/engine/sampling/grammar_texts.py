"""Finds which texts a grammar accepts, and compares with vLLM's grammars."""

from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from server.engine.sampling.grammar import GrammarError, translate_grammar
from server.terms.types import GuidedDecoding
from tests.support.peer_vllm import ask_vllm


def build_grammar(guided: GuidedDecoding) -> str:
    """The grammar in llguidance's format. It compiles.

    Raises:
        GrammarError: the schema, expression or grammar is not valid.
    """
    try:
        grammar = translate_grammar(guided)
    except ValueError as err:
        raise GrammarError(str(err)) from err
    if error := LLMatcher.validate_grammar(grammar):
        raise GrammarError(error)
    return grammar


def accepted_texts(guided: GuidedDecoding, texts: list[str]) -> list[str]:
    """The texts that the grammar accepts as a whole. One token is one byte."""
    grammar = build_grammar(guided)
    return [text for text in texts if _is_whole(grammar, text)]


def assert_vllm_accepts(cases: list[tuple[str, str, list[str] | None, list[str]]], folder: Path) -> None:
    """Checks which texts vLLM accepts and rejects. If no list is accepted, it rejects the specification."""
    asked = [[kind, specification, (accepted or []) + rejected] for kind, specification, accepted, rejected in cases]
    answers = ask_vllm(Path(__file__).with_name("vllm_grammars.py"), asked, folder)
    for (_, specification, accepted, rejected), answer in zip(cases, answers, strict=True):
        expected = None if accepted is None else [True] * len(accepted) + [False] * len(rejected)
        assert answer == expected, specification


def _is_whole(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    token_ids = list(text.encode())
    return bool(matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting())
