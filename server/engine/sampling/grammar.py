"""Converts grammars of requests to llguidance's format, and compiles them on threads."""

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from server.engine.sampling.json_schema import SCHEMA_OPTIONS, prepare_schema, translate_regex
from server.terms.types import GuidedDecoding

_MOST_KEPT_CHARS = 1 << 20
"""Unused grammars are kept up to so many characters. Compiled, a character takes at most 40 bytes."""
_LEAST_CHARS = 1 << 12
"""Shorter grammars count as if they had so many characters."""
_LIMITS = LLParserLimits(step_max_items=10_000, verbose_errors=False)
"""llguidance's default limits, but 50,000 items for a mask, which an ambiguous grammar reaches, take 0.5 s.

Grammars that are not ambiguous need at most a few thousand items. Sequences beyond a limit fail.
"""


class GrammarError(ValueError):
    """The grammar does not compile. The message names the position of the fault."""


def translate_grammar(guided: GuidedDecoding) -> str:
    """Returns the grammar in llguidance's format. The result may still fail to compile.

    Raises:
        ValueError: the schema, expression or grammar is not valid.
    """
    match guided.kind:
        case "json_object":
            return str(LLMatcher.grammar_from_json_schema('{"type": "object"}'))
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(prepare_schema(guided.spec), defaults=SCHEMA_OPTIONS))
        case "regex":
            return str(LLMatcher.grammar_from_regex(translate_regex(guided.spec)))
        case "choice":
            # One terminal for all choices, because a rule has at most 2000 terminals.
            choices = " | ".join(map(json.dumps, json.loads(guided.spec)))
            return str(LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {choices}"))
        case "grammar":
            return str(grammar_from("grammar", guided.spec))


class Grammar:
    """A compiled grammar, or only a loaded tokenizer. All sequences with the same grammar share it."""

    def __init__(self, num_chars: int, compiled: "Future[LLMatcher | None]") -> None:
        self.num_chars = num_chars
        self.compiled = compiled
        self.num_users = 0

    def copy(self) -> LLMatcher:
        """Returns a matcher for one sequence. The matcher has a copy of the grammar's text."""
        matcher = self.compiled.result()
        assert matcher is not None
        return matcher.deep_copy()


class GrammarCompiler:
    """Compiles grammars on an executor, without holding the GIL. Its methods run on the engine's thread."""

    def __init__(self, executor: Executor, load_tokenizer: Callable[[], LLTokenizer], wake: Callable[[], None]) -> None:
        """`load_tokenizer` runs on the executor. `wake` runs on any thread when a grammar is ready."""
        self._executor = executor
        self._load_tokenizer = load_tokenizer
        self._wake = wake
        self._grammars: dict[GuidedDecoding | None, Grammar] = {}
        """A request's grammar -> its compiled form. The least recently used grammar is first."""

    def acquire(self, guided: GuidedDecoding | None) -> Grammar:
        """Returns the grammar, whose compilation may still run. With None, loads only the tokenizer."""
        grammar = self._grammars.pop(guided, None)
        if grammar is None:
            compiled = self._executor.submit(self._compile, guided)
            compiled.add_done_callback(lambda _: self._wake())
            grammar = Grammar(max(len(guided.spec) if guided else 0, _LEAST_CHARS), compiled)
        grammar.num_users += 1
        self._grammars[guided] = grammar
        return grammar

    def release(self, grammar: Grammar) -> None:
        """Ends one use of a grammar. After the last one, cancels the compilation if it has not begun."""
        grammar.num_users -= 1
        if grammar.num_users:
            return
        compiled = grammar.compiled
        is_useless = compiled.cancel() or (compiled.done() and compiled.exception() is not None)
        if is_useless:
            self._grammars = {guided: each for guided, each in self._grammars.items() if each is not grammar}
        unused = {guided: each for guided, each in self._grammars.items() if not each.num_users}
        num_chars = sum(each.num_chars for each in unused.values())
        for guided, each in unused.items():
            if num_chars <= _MOST_KEPT_CHARS:
                break
            num_chars -= each.num_chars
            del self._grammars[guided]

    def _compile(self, guided: GuidedDecoding | None) -> LLMatcher | None:
        try:
            tokenizer = self._load_tokenizer()
            if guided is None:
                return None
            matcher = LLMatcher(tokenizer, translate_grammar(guided), log_level=0, limits=_LIMITS)
            if not matcher.is_error():
                matcher.compute_bitmask()  # done once for all copies: it takes 100 ms for 40,000 words
        except BaseException as err:  # any failure here fails the request; llguidance's panics are no Exception
            raise GrammarError(str(err) or type(err).__name__) from err
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return matcher
