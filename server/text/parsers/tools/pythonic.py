"""Parses calls in Python's syntax: `[get_weather(city='Paris', days=2), now()]`."""

import ast
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import regex

from server.text.parsers.base import FunctionSignature
from server.text.parsers.json_text import write_json
from server.text.parsers.text_parser import TextParser, Waiting

_IN_LIST: Final = regex.compile(r"""["'()\[\]{},]""")
_IN_LINES: Final = regex.compile(r"""["'()\[\]{},\n]|</function_calls>""")
_IN_STRING: Final = {quote: regex.compile(rf"\\[\s\S]|{quote}") for quote in "'\""}
_LINES_START: Final = regex.compile("<function_calls>")

_STRING: Final = regex.compile(r"""'(?:\\[\s\S]|[^'\\])*+(?:'|\\?\Z)|"(?:\\[\s\S]|[^"\\])*+(?:"|\\?\Z)""")
"""A string literal. A literal without a closing quote extends to the end of the text.

Otherwise, a search would start again at each quote.
"""
_ESCAPES: Final = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\x00"})

_JSON_NAMES: Final = {"null": None, "true": True, "false": False}


class _Element(NamedTuple):
    """One element of a list of calls."""

    text: str
    end: str | None
    """The character that ends the element. None at the end of the text."""


class PythonicParser(TextParser):
    """Parses a text that begins with a list of calls. Reports each call when it is complete."""

    start: ClassVar = regex.compile(r"\[(?=\s{0,64}[A-Za-z_])")
    end: ClassVar[regex.Pattern[str] | None] = None
    """Text that is dropped if it follows the list."""

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        super().__init__()

    def read(self) -> Waiting[None]:
        if start := (yield from self.text.expect(self.start)):
            yield from self.read_calls(_IN_LIST, start=start[0], ends=("]",))
        if self.end and self.num_calls:
            yield from self.text.expect(self.end)
        yield from self.text.pass_rest(self.add_content)

    def read_calls(self, marks: regex.Pattern[str], *, start: str, ends: Sequence[str]) -> Waiting[None]:
        """Reads calls up to one of the `ends`, or up to an element that is no call and becomes content."""
        skipped = [start]
        while True:
            element = yield from self._read_element(marks, ends)
            is_call = self._add_call(element.text)
            if is_call:
                skipped = []
            else:
                skipped += (element.text, element.end or "")
            is_last = element.end is None or element.end in ends
            if is_last or (not is_call and element.text.strip()):
                text = "".join(skipped)
                return self.add_content(text) if text.strip() and not self._is_framing(text, ends) else None

    def _is_framing(self, skipped: str, ends: Sequence[str]) -> bool:
        return bool(self.num_calls) and skipped.strip() in ends

    def _add_call(self, text: str) -> bool:
        call = parse_call(text)
        if call is None:
            return False
        self.start_call(call.name)
        self.add_arguments(call.arguments)
        return True

    def _read_element(self, marks: regex.Pattern[str], ends: Sequence[str]) -> Waiting[_Element]:
        parts: list[str] = []
        depth = 0
        while found := (yield from self.text.find(marks, parts.append)):
            mark = found[0]
            if not depth and (mark in ends or mark in ",\n"):
                return _Element("".join(parts), mark)
            parts.append(mark)
            if mark in _IN_STRING:
                yield from self._read_string(_IN_STRING[mark], parts)
            elif mark in "([{":
                depth += 1
            elif mark in ")]}":
                depth -= 1
        return _Element("".join(parts), None)

    def _read_string(self, marks: regex.Pattern[str], parts: list[str]) -> Waiting[None]:
        while found := (yield from self.text.find(marks, parts.append)):
            parts.append(found[0])
            if len(found[0]) == 1:
                return


class Llama4PythonicParser(PythonicParser):
    """A list of calls, which may be between `<|python_start|>` and `<|python_end|>`."""

    start: ClassVar = regex.compile(r"(?:<\|python_start\|>)?\[(?=\s{0,64}[A-Za-z_])")
    end: ClassVar = regex.compile(r"\s{0,64}<\|python_end\|>")


class Lfm2Parser(PythonicParser):
    """Lists of calls between `<|tool_call_start|>` and `<|tool_call_end|>`, anywhere in the text."""

    start: ClassVar = regex.compile(r"<\|tool_call_start\|>\s{0,16}\[")
    end: ClassVar = regex.compile(r"\s{0,64}<\|tool_call_end\|>")

    def read(self) -> Waiting[None]:
        while start := (yield from self.text.find(self.start, self.add_content)):
            num_calls = self.num_calls
            yield from self.read_calls(_IN_LIST, start=start[0], ends=("]",))
            if self.num_calls > num_calls:
                yield from self.text.expect(self.end)


class Olmo3Parser(PythonicParser):
    """One call per line between `<function_calls>` and `</function_calls>`."""

    def read(self) -> Waiting[None]:
        while start := (yield from self.text.find(_LINES_START, self.add_content)):
            yield from self.read_calls(_IN_LINES, start=start[0], ends=("</function_calls>",))


class PythonCall(NamedTuple):
    """A call that Python's parser has read."""

    name: str
    arguments: str
    """The arguments as JSON."""


def parse_call(text: str) -> PythonCall | None:
    """Parses a call. Returns None unless all arguments are keyword arguments with JSON values."""
    if not text.strip():
        return None
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            call = ast.parse(_STRING.sub(_escape_control, text.strip()), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        arguments = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg}
        return PythonCall(".".join(reversed(list(_names(call.func)))), write_json(arguments))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _escape_control(string: regex.Match[str]) -> str:
    """Escapes the line breaks and tabs in a string literal, as Python requires."""
    return string[0].translate(_ESCAPES)


def _names(function: ast.expr) -> Iterator[str]:
    while isinstance(function, ast.Attribute):
        yield function.attr
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("not a name")
    yield function.id


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | str() | int() | float() as value):
            return value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else number
        case ast.JoinedStr(values=parts) if all(isinstance(part, ast.Constant) for part in parts):
            return "".join(str(ast.literal_eval(part)) for part in parts)
    raise ValueError("not a JSON value")


def _key(node: ast.expr | None) -> Any:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, None | str | int | float):
        raise ValueError("not a JSON key")
    return node.value
