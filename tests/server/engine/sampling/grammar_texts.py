"""Whether a grammar accepts a text."""

from llguidance import LLMatcher, LLTokenizer

from server.engine.sampling.grammar import build_grammar
from server.types import GuidedDecoding


def accepted_texts(guided: GuidedDecoding, texts: list[str]) -> list[str]:
    """Those of the texts that the grammar accepts as a whole; one token is one byte."""
    grammar = build_grammar(guided)
    return [text for text in texts if _is_whole(grammar, text)]


def _is_whole(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    token_ids = list(text.encode())
    return bool(matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting())
