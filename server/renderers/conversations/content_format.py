"""Detects whether a chat template expects message contents as text or as lists of parts."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from jinja2 import TemplateSyntaxError, nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

ContentFormat = Literal["string", "openai"]


def resolve_content_format(template: str, wanted: Literal["auto", "string", "openai"]) -> ContentFormat:
    """Resolves `--chat-template-content-format` for a template."""
    return detect_content_format(template) if wanted == "auto" else wanted


@lru_cache(maxsize=32)
def detect_content_format(template: str) -> ContentFormat:
    """`openai` for a template that loops over a message's content, otherwise `string`.

    This is vLLM's rule.
    """
    try:
        tree = _compile_jinja_template(template).environment.parse(template)
    except TemplateSyntaxError:
        return "string"  # rendering reports the error to the client
    return "openai" if _loops_over_content(tree) else "string"


def _loops_over_content(tree: nodes.Template) -> bool:
    lists = _with_aliases(tree, {"messages"}, lambda expr: False)
    messages = {_name(loop.target) for loop in tree.find_all(nodes.For) if _is_name(loop.iter, lists)}
    contents = _with_aliases(tree, set(), lambda expr: _is_content_of(expr, messages))

    def is_content(expr: nodes.Node) -> bool:
        return _is_content_of(expr, messages) or _is_name(expr, contents)

    in_macros: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        parameters = _parameters_given(tree, macro, is_content)
        in_macros.update((id(loop), parameters) for loop in macro.find_all(nodes.For))
    return any(
        is_content(loop.iter) or _is_name(loop.iter, in_macros.get(id(loop), {"content"}))
        for loop in tree.find_all(nodes.For)
    )


def _with_aliases(tree: nodes.Node, names: set[str], is_source: Callable[[nodes.Node], bool]) -> set[str]:
    """`names`, and names assigned from one of them or from an expression that `is_source` accepts."""
    names = set(names)
    assignments = list(tree.find_all(nodes.Assign))
    size = -1
    while len(names) > size:
        size = len(names)
        names |= {_name(node.target) for node in assignments if _is_name(node.node, names) or is_source(node.node)}
    return names


def _parameters_given(tree: nodes.Node, macro: nodes.Macro, accepts: Callable[[nodes.Node], bool]) -> set[str]:
    """The macro's parameters that receive an accepted expression in some call."""
    names = [parameter.name for parameter in macro.args]
    given: set[str] = set()
    for call in tree.find_all(nodes.Call):
        if _is_name(call.node, {macro.name}):
            given.update(name for name, value in zip(names, call.args, strict=False) if accepts(value))
            given.update(pair.key for pair in call.kwargs if pair.key in names and accepts(pair.value))
    return given


def _name(target: nodes.Node) -> str:
    return target.name if isinstance(target, nodes.Name) else ""


def _is_name(expr: nodes.Node, names: set[str]) -> bool:
    expr = _unwrapped(expr)
    return isinstance(expr, nodes.Name) and expr.name in names


def _is_content_of(expr: nodes.Node, messages: set[str]) -> bool:
    expr = _unwrapped(expr)
    if isinstance(expr, nodes.Getattr):
        return expr.attr == "content" and _is_name(expr.node, messages)
    if isinstance(expr, nodes.Getitem) and isinstance(expr.arg, nodes.Const):
        return expr.arg.value == "content" and _is_name(expr.node, messages)
    return False


def _unwrapped(expr: nodes.Node) -> nodes.Node:
    """The expression without filters, tests and slices, which do not change the kind of elements."""
    while isinstance(expr, nodes.Filter | nodes.Test) or (
        isinstance(expr, nodes.Getitem) and isinstance(expr.arg, nodes.Slice)
    ):
        if expr.node is None:
            break
        expr = expr.node
    return expr
