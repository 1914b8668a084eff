"""Formats that write each argument between markers of its own; `markup.py` reads them."""

from dataclasses import replace
from typing import ClassVar, Final

from server.parsers.tools.markup import Markup, MarkupParser

_DSML: Final = "｜DSML｜"
_QUOTED: Final = r"""(?:"(?P<{0}>[^"<>]{{1,256}})"|'(?P<{0}>[^'<>]{{1,256}})'|(?P<{0}>[^"'<>\s]{{1,256}}))"""


def _dsml(block: str, block_end: str, blank: str = "") -> Markup:
    """A block of this name, a pattern; `blank` is what follows the mark in every tag."""
    mark = _DSML + blank
    return Markup(
        block=f"<{mark}{block}>",
        call=rf'<{mark}invoke name="(?P<name>[^"<>]{{1,256}})">',
        argument=rf'<{mark}parameter\s{{1,4}}name="(?P<key>[^"<>]{{1,256}})"'
        rf'(?:\s{{1,4}}string="(?P<string>[^"<>]{{0,16}})")?\s{{0,4}}>',
        argument_end=f"</{mark}parameter>",
        call_end=f"</{mark}invoke>",
        block_end=f"</{mark}{block_end}>",
        wrappers=("arguments", "input"),
        ends_turn=True,
    )


class DeepseekV32Parser(MarkupParser):
    """`<｜DSML｜invoke name="NAME">` with `<｜DSML｜parameter name="KEY">`.

    A value that is no string is JSON.
    """

    markup: ClassVar = _dsml("function_calls", "function_calls")


class DeepseekV4Parser(MarkupParser):
    """The block has another name, and variants that the model writes at times."""

    markup: ClassVar = _dsml("(?:tool_calls|toolcalls|tool)", "tool_calls")


class DeepseekV41Parser(MarkupParser):
    """The block has another name, and a blank follows the mark."""

    markup: ClassVar = _dsml("calls", "calls", blank=" ")


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


class MinimaxM2Parser(MarkupParser):
    """`<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`, in groups."""

    markup: ClassVar = Markup(
        block="<minimax:tool_call>",
        call=rf"<invoke name={_QUOTED.format('name')}>",
        argument=rf"<\s{{0,4}}parameter\s{{1,4}}name\s{{0,4}}=\s{{0,4}}{_QUOTED.format('key')}\s{{0,4}}>",
        argument_end=r"<\s{0,4}/\s{0,4}parameter\s{0,4}>",
        call_end="</invoke>",
        block_end="</minimax:tool_call>",
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


class Step3Parser(MarkupParser):
    """`<steptml:invoke name="NAME"><steptml:parameter name="KEY">VALUE</steptml:parameter>` and tokens."""

    markup: ClassVar = Markup(
        block="<｜tool_calls_begin｜>",
        call=r"<｜tool_call_begin｜>function<｜tool_sep｜>"
        r'<steptml:invoke name="(?P<name>[^"<>]{1,256})">',
        argument=r'<steptml:parameter name="(?P<key>[^"<>]{1,256})">',
        argument_end="</steptml:parameter>",
        call_end=r"</steptml:invoke>\s{0,16}<｜tool_call_end｜>",
        before_value=r"\s{1,64}(?=\S)",
        after_value=r"\s{0,64}",
        block_end="<｜tool_calls_end｜>",
    )
