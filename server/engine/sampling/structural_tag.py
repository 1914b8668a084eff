"""Translates structural tags, which constrain parts of a text such as tool calls, for llguidance.

Formats and their meanings are xgrammar's, as in vLLM. Formats of tokens, dispatch and XML styles are not
supported.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from llguidance import LLMatcher, grammar_from
from msgspec import Meta, structs

from server.engine.sampling.json_schema import SCHEMA_OPTIONS, prepare_schema, translate_regex


class Ends(NamedTuple):
    """One of some texts that follow a format; free text stops at its first occurrence.

    Empty: anything may follow.
    """

    expression: str = ""
    is_needed: bool = False
    """Whether free text must reach it: none of the texts is empty."""


_NO_ENDS = Ends()

_MOST_COPIED = 64
"""Characters of ends that each format before them may write out; longer ones get a rule of their own."""

_ANY_TEXT = "/(?s:.)*/"

_MAX_TRIGGERS = 256
"""Each tag is compared with all of them."""

_Trigger = Annotated[str, Meta(min_length=1)]


class _Const(msgspec.Struct, tag_field="type", tag="const_string"):
    value: str


class _AnyText(msgspec.Struct, tag_field="type", tag="any_text"):
    excludes: list[str] = []


class _Schema(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: bool | dict[str, Any]
    style: Literal["json"] = "json"
    excludes: Annotated[list[str], Meta(max_length=0)] = []


class _Regex(msgspec.Struct, tag_field="type", tag="regex"):
    pattern: str


class _Grammar(msgspec.Struct, tag_field="type", tag="grammar"):
    grammar: str


class _Tag(msgspec.Struct, tag_field="type", tag="tag"):
    begin: str
    content: "_Format"
    end: str | Annotated[list[str], Meta(min_length=1)]

    @property
    def ends(self) -> list[str]:
        return [self.end] if isinstance(self.end, str) else self.end


class _Sequence(msgspec.Struct, tag_field="type", tag="sequence"):
    elements: "Annotated[list[_Format], Meta(min_length=1)]"


class _Or(msgspec.Struct, tag_field="type", tag="or"):
    elements: "Annotated[list[_Format], Meta(min_length=1)]"


class _Triggered(msgspec.Struct, tag_field="type", tag="triggered_tags"):
    triggers: list[_Trigger]
    tags: list[_Tag]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = []

    def __post_init__(self) -> None:
        if not self.tags or len(self.triggers) > _MAX_TRIGGERS:
            raise ValueError(f"there must be at least one tag, and at most {_MAX_TRIGGERS} triggers")
        for tag in self.tags:
            if sum(map(tag.begin.startswith, self.triggers)) != 1:
                raise ValueError(f"the tag {tag.begin!r} must begin with exactly one of the triggers")


class _Separated(msgspec.Struct, tag_field="type", tag="tags_with_separator"):
    tags: Annotated[list[_Tag], Meta(min_length=1)]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


class _Optional(msgspec.Struct, tag_field="type", tag="optional"):
    content: "_Format"


class _Plus(msgspec.Struct, tag_field="type", tag="plus"):
    content: "_Format"


class _Star(msgspec.Struct, tag_field="type", tag="star"):
    content: "_Format"


class _Repeat(msgspec.Struct, tag_field="type", tag="repeat"):
    content: "_Format"
    min: Annotated[int, Meta(ge=0)]
    max: Annotated[int, Meta(ge=-1)]


_Format = (
    _Const
    | _AnyText
    | _Schema
    | _Regex
    | _Grammar
    | _Tag
    | _Sequence
    | _Or
    | _Triggered
    | _Separated
    | _Optional
    | _Plus
    | _Star
    | _Repeat
)


class _Structure(msgspec.Struct):
    begin: str
    end: str
    schema: bool | dict[str, Any] | None = None

    def to_tag(self) -> _Tag:
        return _Tag(self.begin, _Schema(True if self.schema is None else self.schema), self.end)


class _StructuralTag(msgspec.Struct):
    """Either `format`, or `structures` and `triggers`, which is the older form."""

    format: _Format | None = None
    structures: list[_Structure] | None = None
    triggers: list[_Trigger] = []


def structural_tag_grammar(spec: str) -> str:
    """The grammar in llguidance's format.

    Raises:
        ValueError: the specification is invalid, or has a format that is not supported.
    """
    try:
        given = msgspec.json.decode(spec, type=_StructuralTag)
        if given.structures is not None:
            given.format = _Triggered(given.triggers, [one.to_tag() for one in given.structures])
    except msgspec.MsgspecError as err:
        raise ValueError(str(err)) from err
    if given.format is None:
        raise ValueError("a structural tag needs `format`, or `structures` and `triggers`")
    return _Translator().translate(given.format)


class _Translator:
    """Collects the rules and nested grammars of one structural tag."""

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._grammars: list[dict[str, str]] = []

    def translate(self, given: _Format) -> str:
        start = self._expression(given, _NO_ENDS)
        lark = "\n".join(["%llguidance {}", f"start: {start}", *self._rules])
        return json.dumps({"grammars": [{"name": "structural_tag", "lark_grammar": lark}, *self._grammars]})

    def _expression(self, given: _Format, ends: Ends) -> str:
        """The expression of a format and of what follows it."""
        match given:
            case _AnyText():
                return self._text(self._terminal(given.excludes), ends)
            case _Triggered():
                return self._triggered(given, ends)
            case _Sequence():
                return self._sequence(given.elements, ends)
            case _Or():
                return _any_of(self._expression(element, ends) for element in given.elements)
            case _Regex():  # one terminal with its end, because terminals are greedy
                return self._rule(f"{_regex(given.pattern)} {ends.expression}", is_terminal=True)
            case _Tag():
                content = self._expression(given.content, self._ends(given.ends))
                return f"{_literals([given.begin])} {content} {ends.expression}"
        return f"{self._inner(given)} {ends.expression}"

    def _inner(self, given: _Format) -> str:
        """The expression of a format that does not depend on what follows it."""
        match given:
            case _Const():
                return _literals([given.value])
            case _Schema():
                schema = given.json_schema if isinstance(given.json_schema, dict) else {}
                return f"%json {prepare_schema(json.dumps(schema | {'x-guidance': SCHEMA_OPTIONS}))}"
            case _Grammar():
                name = f"grammar_{len(self._grammars)}"
                self._grammars.append({"name": name, "lark_grammar": grammar_from("grammar", given.grammar)})
                return "@" + name
            case _Separated():
                return self._separated(given)
            case _Optional():
                return f"({self._expression(given.content, _NO_ENDS)})?"
            case _Plus():
                return f"({self._expression(given.content, _NO_ENDS)})+"
            case _Star():
                return f"({self._expression(given.content, _NO_ENDS)})*"
            case _Repeat():
                limit = "" if given.max < 0 else str(given.max)
                return f"({self._expression(given.content, _NO_ENDS)}){{{given.min},{limit}}}"
        raise AssertionError(given)

    def _ends(self, texts: list[str]) -> Ends:
        expression = _literals(texts)
        if len(expression) > _MOST_COPIED:  # a terminal cannot be empty
            name = self._rule(_literals([text for text in texts if text]), is_terminal=True)
            expression = f'({name} | "")' if "" in texts else name
        return Ends(expression, is_needed="" not in texts)

    def _text(self, text: str, ends: Ends) -> str:
        """Free text, which is the terminal of this name, up to its end, whose first occurrence counts."""
        return self._rule(f"{text} {ends.expression}", is_lazy=True) if ends.is_needed else text

    def _terminal(self, excludes: list[str]) -> str:
        if not excludes:
            return self._rule(_ANY_TEXT, is_terminal=True)
        return self._rule(f"~({_ANY_TEXT} {_literals(excludes)} {_ANY_TEXT})", is_terminal=True)

    def _sequence(self, elements: list[_Format], ends: Ends) -> str:
        parts = []
        waiting = list(reversed(elements))
        while waiting:
            element = waiting.pop()
            if not waiting:
                parts.append(self._expression(element, ends))
                continue
            begin = ""
            if isinstance(element, (_AnyText, _Triggered, _Regex)):
                begin, waiting[-1] = _split(waiting[-1])
            parts.append(self._expression(element, self._ends([begin]) if begin else _NO_ENDS))
        return " ".join(parts)

    def _triggered(self, given: _Triggered, ends: Ends) -> str:
        free = self._terminal(given.excludes)
        rests = [self._rule(self._expression(structs.replace(tag, begin=""), _NO_ENDS)) for tag in given.tags]
        tags = [(tag.begin, rest) for tag, rest in zip(given.tags, rests, strict=True)]
        calls = []
        for trigger in given.triggers:
            begun = [(begin[len(trigger) :], rest) for begin, rest in tags if begin.startswith(trigger)]
            if begun:
                head = self._rule(f"{free} {_literals([trigger])}", is_lazy=True)
                calls.append(f"{head} {_any_of(f'{_literals([begin])} {rest}' for begin, rest in begun)}")
        call, text = self._rule(_any_of(calls)), self._text(free, ends)
        if not given.at_least_one:
            return f"({call} {ends.expression} | {text})" if given.stop_after_first else f"{call}* {text}"
        first = _any_of(f"{_literals([begin])} {rest}" for begin, rest in tags)
        return f"{first} {ends.expression}" if given.stop_after_first else f"{first} {call}* {text}"

    def _separated(self, given: _Separated) -> str:
        tag = self._rule(_any_of(self._expression(tag, _NO_ENDS) for tag in given.tags))
        more = "" if given.stop_after_first else f"({_literals([given.separator])} {tag})*"
        return f"{tag} {more}" if given.at_least_one else f"({tag} {more})?"

    def _rule(self, body: str, *, is_lazy: bool = False, is_terminal: bool = False) -> str:
        name = f"{'T' if is_terminal else 'r'}{len(self._rules)}"
        self._rules.append(f"{name}{'[lazy]' if is_lazy else ''}: {body}")
        return name


def _regex(pattern: str) -> str:
    """The expression as Lark writes it."""
    lark: str = json.loads(LLMatcher.grammar_from_regex(translate_regex(pattern)))["grammars"][0]["lark_grammar"]
    return lark.removeprefix("start: ")


def _split(given: _Format) -> tuple[str, _Format]:
    """The constant text with which a format begins, and the rest of the format."""
    match given:
        case _Const():
            return given.value, _Const("")
        case _Tag():
            return given.begin, structs.replace(given, begin="")
    return "", given


def _literals(texts: list[str]) -> str:
    return _any_of(map(json.dumps, texts)) if any(texts) else ""


def _any_of(expressions: Iterable[str]) -> str:
    return f"({' | '.join(expressions)})"
