"""Chat templates: which one applies, rendering it, and the form of message contents that it expects.

Every failure of a template is reported as a `RequestError`.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from server.errors import RequestError
from server.renderers.messages import ContentFormat, Message, without_developer
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.files import TokenizerLoadError

_RESERVED = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *inspect.signature(render_jinja_template).parameters,
}
"""Names that `chat_template_kwargs` may not set."""


def check_chat_template(template: str) -> None:
    """Compiles the operator's template, so that a mistake in it fails the start and not every request.

    Raises:
        TokenizerLoadError: it is not a valid Jinja template.
    """
    try:
        _compile_jinja_template(template)
    except jinja2.TemplateSyntaxError as err:
        raise TokenizerLoadError(f"--chat-template is not a Jinja template: line {err.lineno}: {err.message}") from err


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, given: str | None, tools: list[dict[str, Any]] | None
) -> str:
    """The template's text: `given`, or else the tokenizer's own for these tools.

    `given` may be the name of one of the tokenizer's own templates.

    Raises:
        RequestError: there is no template.
    """
    try:
        template: str = tokenizer.get_chat_template(given, tools)
    except ValueError as err:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            param="messages",
        ) from err
    return template


def safe_apply_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[Message],
    *,
    template: str,
    options: ChatOptions,
    template_kwargs: dict[str, Any],
) -> str:
    """Renders the prompt's text in Jinja's sandbox.

    Raises:
        RequestError: a template variable has a reserved name, or the template failed or rejected the
            conversation.
    """
    _check_reserved(template_kwargs)
    if not any(quoted in template for quoted in ("'developer'", '"developer"')):
        conversation = without_developer(conversation)
    try:
        text: str = tokenizer.apply_chat_template(
            conversation,
            tools=options.tools or None,
            documents=options.documents,
            chat_template=template,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tokenize=False,
            **template_kwargs,
        )
    except Exception as err:  # a template may raise any kind of error
        raise RequestError(f"the chat template failed: {_describe(err)}", param="messages") from err
    return text


def _check_reserved(template_kwargs: dict[str, Any]) -> None:
    if reserved := sorted(_RESERVED & template_kwargs.keys()):
        raise RequestError(f"chat_template_kwargs may not set {', '.join(reserved)}", param="chat_template_kwargs")


def _describe(err: Exception) -> str:
    """The template's own message, as from `raise_exception(...)`; for other errors with the error's type."""
    return str(err) if isinstance(err, jinja2.TemplateError) and str(err) else f"{type(err).__name__}: {err}"


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
    except jinja2.TemplateSyntaxError:
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
