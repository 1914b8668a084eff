"""Converts grammars of requests to llguidance's format, and compiles them on threads."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager

from llguidance import LLMatcher, LLTokenizer, grammar_from

from server.engine.sampling.grammar_trial import GrammarTrials, Trial, compile_matcher, compile_tried
from server.engine.sampling.json_schema import SCHEMA_OPTIONS, prepare_schema, translate_regex
from server.terms.types import GuidedDecoding

_MOST_KEPT_CHARS = 1 << 20
"""Unused grammars are kept up to so many characters."""
_BYTES_PER_CHAR = 40
"""The most memory of a character of a harmless grammar, compiled."""
_LEAST_CHARS = 1 << 12
"""Shorter grammars count as if they had so many characters."""
_MOST_HARMLESS_CHARS = {
    "json_object": 0,
    "json_schema": 1 << 14,
    "regex": 1 << 10,
    "choice": 1 << 16,
    "grammar": 1 << 12,
}
"""The size of texts that are harmless without costly numbers, by kind.

No such text of `tests/server/engine/sampling/hostile_grammars.py` takes more than 0.1 s, 60 MiB or 2 MiB of
stack to compile. A thread has 2 MiB or more, normally 8.
"""
_COSTLY = re.compile(r"[0-9]{5}|[0-9][eE]\+?[0-9]{2}|multipleOf")
"""Matches numbers and keywords whose grammars may take all memory. In other texts, five digits do no harm."""
_MOST_FORCED_CHARS = 1 << 16
"""The longest text that a harmless grammar may force: 0.1 s and 22 MiB. It counts as the grammar's size."""
_BOUND = re.compile(r"\{([0-9]*)(?:,([0-9]*))?\}")
_LARK_BOUND = re.compile(r"[{~,.] ?([0-9]+)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_REFERENCE = re.compile(r'"\$ref": ("[^"]*")')
_ITEMS = re.compile(r'"minItems": ([0-9]+)')
_ESCAPED = "\\u"
"""Begins an escape in JSON, which may hide a keyword from `_COSTLY`. A schema was written by `json.dumps`."""


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


def is_harmless(guided: GuidedDecoding) -> bool:
    """Whether the text is so small and plain that llguidance compiles it in little time, memory and stack.

    Texts that are not harmless may be so, too, but need a trial.
    """
    text = guided.spec
    if len(text) > _MOST_HARMLESS_CHARS[guided.kind]:
        return False
    if guided.kind == "grammar" and _ESCAPED in text:
        return False
    if guided.kind != "choice" and _COSTLY.search(text) is not None:
        return False
    return _estimate_chars(guided) <= _MOST_FORCED_CHARS


def _estimate_chars(guided: GuidedDecoding) -> int:
    """At least the length of the longest text that the grammar may force. Reads only small texts.

    llguidance walks through all of a forced text, such as that of `(a{99}){99}`, for each mask before it.
    """
    text = guided.spec
    match guided.kind:
        case "json_schema":
            # A text with quotes in its strings is not divided into strings.
            strings = [text] if '\\"' in text else text.split('"')
            patterns = (len(string) * _count_repetitions(string) for string in strings if "{" in string)
            uses = _product(Counter(_REFERENCE.findall(text)).values())
            return max(len(text), *patterns, 0) * uses * _product(map(int, _ITEMS.findall(text)))
        case "regex":
            return len(text) * _count_repetitions(text)
        case "grammar":
            uses = _product(number - 1 for number in Counter(_NAME.findall(text)).values())
            return len(text) * uses * _product(map(int, _LARK_BOUND.findall(text)))
        case _:
            return len(text)


def _count_repetitions(pattern: str) -> int:
    """At least how often the expression repeats a part. Bounds of groups and of repetitions multiply."""
    once, multiplied = 1, []
    for match in _BOUND.finditer(pattern):
        bound = max(int(match[1] or 1), int(match[2] or 1))
        if pattern[match.start() - 1] in ")}?*+":
            multiplied.append(bound)
        else:
            once = max(once, bound)
    return once * _product(multiplied)


def _product(numbers: Iterable[int]) -> int:
    product = 1
    for number in numbers:
        product *= max(number, 1)
        if product > _MOST_FORCED_CHARS:
            break
    return product


class Grammar:
    """A compiled grammar, or only a loaded tokenizer. All sequences with the same grammar share it."""

    compiled: "Future[LLMatcher | None]"

    def __init__(self, guided: GuidedDecoding | None) -> None:
        self.num_users = 0
        self.num_chars = max(len(guided.spec) if guided else 0, _LEAST_CHARS)
        """The size of the text, or of the compiled grammar if this is larger."""
        self.trial: Trial | None = None

    @property
    def has_failed(self) -> bool:
        return self.compiled.done() and not self.compiled.cancelled() and self.compiled.exception() is not None

    def cancel(self) -> bool:
        """Ends a compilation that has not begun, or whose trial runs. Returns whether it ends so."""
        if self.compiled.cancel():
            return True
        return self.trial is not None and not self.compiled.done() and self.trial.cancel()

    def copy(self) -> LLMatcher:
        """Returns a matcher for one sequence. The matcher has a copy of the grammar's text."""
        matcher = self.compiled.result()
        assert matcher is not None
        return matcher.deep_copy()


class GrammarCompiler:
    """Compiles grammars on an executor, without holding the GIL. Its methods run on the engine's thread."""

    def __init__(
        self,
        executor: Executor,
        load_tokenizer: Callable[[], LLTokenizer],
        trials: GrammarTrials,
        wake: Callable[[], None],
    ) -> None:
        """`load_tokenizer` runs on the executors. `wake` runs on any thread when a grammar is ready."""
        self._executor = executor
        self._trials = trials
        self._load_tokenizer = load_tokenizer
        self._wake = wake
        self._grammars: dict[GuidedDecoding | None, Grammar] = {}
        """A request's grammar -> its compiled form. The least recently used grammar is first."""

    def acquire(self, guided: GuidedDecoding | None) -> Grammar:
        """Returns the grammar, whose compilation may still run. With None, loads only the tokenizer."""
        grammar = self._grammars.pop(guided, None)
        if grammar is None:
            grammar = self._begin(guided)
            grammar.compiled.add_done_callback(lambda _: self._wake())
        grammar.num_users += 1
        self._grammars[guided] = grammar
        return grammar

    def release(self, grammar: Grammar) -> None:
        """Ends one use of a grammar. After the last one, cancels its compilation."""
        grammar.num_users -= 1
        if grammar.num_users:
            return
        if grammar.cancel() or grammar.has_failed:
            self._grammars = {guided: each for guided, each in self._grammars.items() if each is not grammar}
        unused = {guided: each for guided, each in self._grammars.items() if not each.num_users}
        num_chars = sum(each.num_chars for each in unused.values())
        for guided, each in unused.items():
            if num_chars <= _MOST_KEPT_CHARS:
                break
            num_chars -= each.num_chars
            del self._grammars[guided]

    def _begin(self, guided: GuidedDecoding | None) -> Grammar:
        """Begins a compilation. A grammar that needs a trial keeps no harmless one waiting."""
        grammar = Grammar(guided)
        if guided is None or is_harmless(guided):
            if guided is not None:
                grammar.num_chars = max(grammar.num_chars, _estimate_chars(guided))
            grammar.compiled = self._executor.submit(self._compile, guided)
        else:
            grammar.trial = self._trials.begin()
            grammar.compiled = self._trials.executor.submit(self._try, guided, grammar, grammar.trial)
        return grammar

    def _compile(self, guided: GuidedDecoding | None) -> LLMatcher | None:
        with _as_grammar_error():
            tokenizer = self._load_tokenizer()
            return None if guided is None else compile_matcher(tokenizer, translate_grammar(guided))

    def _try(self, guided: GuidedDecoding, grammar: Grammar, trial: Trial) -> LLMatcher:
        with _as_grammar_error():
            tokenizer = self._load_tokenizer()
            if guided.kind == "grammar":
                text = trial.run("grammar", guided.spec)
            else:
                text = trial.run("llguidance", translate_grammar(guided))
            grammar.num_chars = max(grammar.num_chars, trial.num_bytes // _BYTES_PER_CHAR)
            return compile_tried(tokenizer, text)


@contextmanager
def _as_grammar_error() -> Iterator[None]:
    """Turns a failure into a GrammarError, which fails a request. llguidance's panics are no Exception."""
    try:
        yield
    except BaseException as err:
        raise GrammarError(str(err) or type(err).__name__) from err
