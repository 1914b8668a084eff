"""DeepSeek V3.2's and V4's calls: `<｜DSML｜invoke name="NAME">` with `<｜DSML｜parameter name="KEY">`."""

from dataclasses import replace
from typing import ClassVar, Final

from server.parsers.tools.markup import Markup, MarkupParser

_DSML: Final = "｜DSML｜"

_V32: Final = Markup(
    block=f"<{_DSML}function_calls>",
    call=rf'<{_DSML}invoke name="(?P<name>[^"<>]{{1,256}})">',
    argument=rf'<{_DSML}parameter\s{{1,4}}name="(?P<key>[^"<>]{{1,256}})"'
    rf'(?:\s{{1,4}}string="(?P<string>[^"<>]{{0,16}})")?\s{{0,4}}>',
    argument_end=f"</{_DSML}parameter>",
    call_end=f"</{_DSML}invoke>",
    block_end=f"</{_DSML}function_calls>",
    wrappers=("arguments", "input"),
    ends_turn=True,
)


class DeepseekV32Parser(MarkupParser):
    """A value that is no string is JSON."""

    markup: ClassVar = _V32


class DeepseekV4Parser(MarkupParser):
    """The group has another name, and variants that the model writes at times."""

    markup: ClassVar = replace(_V32, block=f"<{_DSML}(?:tool_calls|toolcalls|tool)>", block_end=f"</{_DSML}tool_calls>")
