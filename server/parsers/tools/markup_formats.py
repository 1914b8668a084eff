"""Formats that write each argument between markers of its own; `markup.py` reads them."""

from dataclasses import replace
from typing import ClassVar, Final

from server.parsers.tools.markup import Markup, MarkupParser


class FunctionGemmaParser(MarkupParser):
    """`<start_function_call>call:NAME{KEY:<escape>VALUE<escape>}<end_function_call>`."""

    markup: ClassVar = Markup(
        call=r"<start_function_call>call:(?P<name>\w{1,256})\{",
        argument=r",?\s{0,16}+(?<!\w)(?P<key>\w{1,256}+):<escape>",
        argument_end="<escape>",
        call_end=r"\}?<end_function_call>",
    )


class Glm45Parser(MarkupParser):
    """GLM 4.5 to 4.7, and Ling 3.

    `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`.
    """

    markup: ClassVar = Markup(
        call=r"<tool_call>\s{0,64}+(?P<name>[^<>\s][^<>]{0,319}+)(?=<arg_key>|</tool_call>)",
        argument=r"<arg_key>\s{0,64}+(?P<key>[^<>\s][^<>]{0,319}+)</arg_key>\s{0,64}<arg_value>",
        argument_end="</arg_value>",
        call_end="</tool_call>",
        has_only_known_functions=True,
    )


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
    """`<function=NAME><parameter=KEY>VALUE</parameter></function>`: Qwen3-Coder, Step 3.5."""

    markup: ClassVar = _QWEN3


class MimoParser(MarkupParser):
    """Line breaks around a value belong to it."""

    markup: ClassVar = replace(_QWEN3, before_value=None, after_value="")


class SeedOssParser(MarkupParser):
    """Other markers around the calls."""

    markup: ClassVar = replace(_QWEN3, block="<seed:tool_call>", block_end="</seed:tool_call>")
