"""The regular expressions of `server` and `startup` cost no more than the length of the text."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from server.parsers.marked_calls import MarkedCalls, start_pattern
from server.parsers.reasoning.tags import TagFormat, marks
from server.parsers.registry import REASONING_FORMATS, TOOL_PARSERS, load_reasoning_format, load_tool_parser
from server.parsers.tools.markup import MarkupParser
from tests.regex_costs import faults

ROOT: Final = Path(__file__).parents[1]

EXCEPTIONS: Final = {
    ("server.parsers.tools.pythonic", "_STRING"): "it cannot fail behind the repetition: it goes on to the text's end",
    ("startup.probes.probe_http", "_HEAD"): "a line ends where the next one begins, and 4 KB are read at most",
}
"""Module and name -> why the cost is bounded all the same."""

NO_FOREIGN_TEXT: Final = {
    "server.engine.lora": "names in an adapter of the operator",
    "server.renderers.tokenizers.files": "names of the model's files",
    "startup.hooks.sources": "vLLM's own sources",
    "startup.model": "names of the model and its files",
    "startup.timeline.subject": "names of installed packages",
    "startup.vllm.facts": "vLLM's own sources",
    "startup.vllm.installed": "names and versions of installed packages",
    "startup.vllm.preflight": "words of the operator, torch's own source, files of the model",
}
"""Package or module -> what its patterns read instead of text of a client or a model."""

BUILT: Final = {
    "server.parsers.tools.markup": "checked for each format below",
    "server.parsers.incoming_text": "alternatives of constant texts",
    "server.parsers.marked_calls": "checked for each format below",
    "server.parsers.reasoning.tags": "checked for each format below",
}
"""Module -> why its patterns need not be constants."""


class Use(NamedTuple):
    """A pattern in the source of a module."""

    module: str
    name: str
    """The constant that holds it, or the function around it."""
    pattern: re.Pattern[Any] | None
    """None if it is not a constant."""
    is_searched: bool


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    return list(_uses())


def test_patterns_are_simple(uses: list[Use]) -> None:
    found = {
        (use.module, use.name): errors
        for use in uses
        if use.pattern is not None and (errors := faults(use.pattern, is_searched=use.is_searched))
    }
    assert found.keys() == EXCEPTIONS.keys(), found


def test_patterns_are_constants(uses: list[Use]) -> None:
    assert {use.module for use in uses if use.pattern is None} == BUILT.keys()


def test_patterns_of_parsers_are_simple() -> None:
    patterns = {pattern.pattern: pattern for pattern in _patterns_of_parsers()}
    assert {text: errors for text, pattern in patterns.items() if (errors := faults(pattern))} == {}


@pytest.mark.parametrize(
    "pattern",
    [
        r"([?&][^=&]*(?:key|token)[^=&]*=)[^&]+",
        r"(a+)+b",
        r"(?:ab*)*c",
        r"\s*x?\s*y",
        r"(.*?)at(.*)`",
        r"'(?:\\.|[^'\\])*+'",
        r"\s+$",
        r"<tag>.*</tag>",
    ],
)
def test_costly_patterns_are_found(pattern: str) -> None:
    assert faults(re.compile(pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        r"key|token",
        r'[^"\\]*+(?:\\.[^"\\]*+)*+',
        r"(?<=//)[^/?#\s]+(?=@)",
        r"<(\w{1,64})>",
        r"\s*",
    ],
)
def test_simple_patterns_are_accepted(pattern: str) -> None:
    assert faults(re.compile(pattern)) == []


def _uses() -> Iterator[Use]:
    for file in sorted((*ROOT.glob("server/**/*.py"), *ROOT.glob("startup/**/*.py"))):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if not any(module == known or module.startswith(known + ".") for known in NO_FOREIGN_TEXT):
            yield from _uses_in(module, file.read_text())


def _uses_in(module: str, source: str) -> Iterator[Use]:
    if "import re" not in source:
        return
    for statement in _statements(ast.parse(source)):
        for call in filter(_is_of_regex_library, ast.walk(statement)):
            assert isinstance(call, ast.Call)
            name = _name_of(statement)
            methods = set(re.findall(rf"\b{name}\.(\w+)\(", source)) or {call.func.attr}  # type: ignore[attr-defined]
            yield Use(module, name, _evaluate(call, module), not methods <= {"match", "fullmatch"})


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The assignments and functions of a module and of its classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _statements(node)
        elif isinstance(node, ast.stmt):
            yield node


def _name_of(statement: ast.stmt) -> str:
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", statement)
    return str(getattr(target, "id", None) or getattr(target, "name", "?"))


def _is_of_regex_library(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("re", "regex")
        and node.func.attr != "escape"
    )


def _evaluate(call: ast.Call, module: str) -> re.Pattern[Any] | None:
    """The pattern, if it is made of constants."""
    names = vars(import_module(module)) | {"quote": "'"}
    try:
        text = eval(compile(ast.Expression(call.args[0]), module, "eval"), names)
    except NameError:
        return None
    flags = ast.unparse(call.args[-1]) if len(call.args) > 1 else ""
    return re.compile(text, eval(flags) if re.fullmatch(r"re\.[A-Z]+", flags) else re.NOFLAG)


def _patterns_of_parsers() -> Iterator[Any]:
    for name in TOOL_PARSERS:
        parser = load_tool_parser(name)
        if issubclass(parser, MarkupParser):
            markup = parser.markup
            yield from (markup.opening, markup.first_call, markup.argument_or_end, markup.value_end)
            if markup.block_end:
                yield from (markup.following, markup.group_end)
            if markup.value_begin:
                yield markup.value_begin
        elif issubclass(parser, MarkedCalls):
            yield start_pattern(*parser.markers, bare=parser.bare_starts)
    for name in REASONING_FORMATS:
        form = load_reasoning_format(name)
        if isinstance(form, TagFormat):
            yield marks(form, drops_answer_starts=False)
