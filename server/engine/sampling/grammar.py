"""Converts a request's grammar to the format of llguidance, which compiles it in the engine."""

import json

from llguidance import LLMatcher, grammar_from

from server.engine.sampling.json_schema import SCHEMA_OPTIONS, prepare_schema
from server.engine.sampling.regex_syntax import translate_regex
from server.engine.sampling.structural_tag import structural_tag_grammar
from server.types import GuidedDecoding

_ANY_OBJECT = {"type": "object"}


class GrammarError(ValueError):
    """The grammar does not compile; the message names the position."""


def build_grammar(guided: GuidedDecoding) -> str:
    """The grammar in llguidance's format, known to compile.

    Raises:
        GrammarError: the schema, expression or grammar is not valid.
    """
    grammar = translate_grammar(guided)
    error = LLMatcher.validate_grammar(grammar)
    if error:
        raise GrammarError(error)
    return grammar


def translate_grammar(guided: GuidedDecoding) -> str:
    """The grammar in llguidance's format, which may not compile.

    Raises:
        GrammarError: the schema, expression or grammar is not valid.
    """
    try:
        return _translate(guided)
    except ValueError as err:
        raise GrammarError(str(err)) from err


def _translate(guided: GuidedDecoding) -> str:
    match guided.kind:
        case "json_object":
            return str(LLMatcher.grammar_from_json_schema(json.dumps(_ANY_OBJECT)))
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(prepare_schema(guided.spec), defaults=SCHEMA_OPTIONS))
        case "regex":
            return str(LLMatcher.grammar_from_regex(translate_regex(guided.spec)))
        case "choice":
            return str(LLMatcher.grammar_from_lark(_choice_grammar(_read_choices(guided.spec))))
        case "grammar":
            return str(grammar_from("grammar", guided.spec))
        case "structural_tag":
            return structural_tag_grammar(guided.spec)


def _choice_grammar(choices: list[str]) -> str:
    """One terminal with all choices, because a rule has at most 2000."""
    return "start: TEXT\nTEXT: " + " | ".join(map(json.dumps, choices))


def _read_choices(spec: str) -> list[str]:
    choices = json.loads(spec)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"choices must be a list of one or more texts, got {spec}")
    return choices
