"""DeepSeek V3.2's to V4.1's calls: `<｜DSML｜invoke name="NAME">` with `<｜DSML｜parameter name="KEY">`."""

from typing import ClassVar, Final

from server.parsers.tools.markup import Markup, MarkupParser

_DSML: Final = "｜DSML｜"


def _markup(block: str, block_end: str, blank: str = "") -> Markup:
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
    """A value that is no string is JSON."""

    markup: ClassVar = _markup("function_calls", "function_calls")


class DeepseekV4Parser(MarkupParser):
    """The block has another name, and variants that the model writes at times."""

    markup: ClassVar = _markup("(?:tool_calls|toolcalls|tool)", "tool_calls")


class DeepseekV41Parser(MarkupParser):
    """The block has another name, and a blank follows the mark."""

    markup: ClassVar = _markup("calls", "calls", blank=" ")
