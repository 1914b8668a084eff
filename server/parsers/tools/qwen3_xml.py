"""Qwen3-Coder's calls: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function>`."""

from dataclasses import replace
from typing import ClassVar, Final

from server.parsers.tools.markup import Markup, MarkupParser

_QWEN3: Final = Markup(
    block="<tool_call>",
    call=r"<function=(?P<name>[^<>]{1,256})>",
    argument=r"<\s{0,4}parameter\s{0,4}=\s{0,4}(?P<key>[^<>]{1,256})>",
    argument_end=r"<\s{0,4}/\s{0,4}parameter\s{0,4}>",
    call_end="</function>",
    block_end="</tool_call>",
    before_value=r"\n",
    after_value=r"\n?",
)


class Qwen3XmlParser(MarkupParser):
    """Also Step 3.5."""

    markup: ClassVar = _QWEN3


class MimoParser(MarkupParser):
    """Line breaks around a value belong to it."""

    markup: ClassVar = replace(_QWEN3, before_value=None, after_value="")


class SeedOssParser(MarkupParser):
    """Other markers around the calls."""

    markup: ClassVar = replace(_QWEN3, block="<seed:tool_call>", block_end="</seed:tool_call>")
