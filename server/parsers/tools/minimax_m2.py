"""MiniMax M2's calls: `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter>`."""

from typing import ClassVar

from server.parsers.tools.markup import Markup, MarkupParser

_QUOTED = r"""(?:"(?P<{0}>[^"<>]{{1,256}})"|'(?P<{0}>[^'<>]{{1,256}})'|(?P<{0}>[^"'<>\s]{{1,256}}))"""


class MinimaxM2Parser(MarkupParser):
    """The calls of one group are between `<minimax:tool_call>` and `</minimax:tool_call>`."""

    markup: ClassVar = Markup(
        block="<minimax:tool_call>",
        call=rf"<invoke name={_QUOTED.format('name')}>",
        argument=rf"<\s{{0,4}}parameter\s{{1,4}}name\s{{0,4}}=\s{{0,4}}{_QUOTED.format('key')}\s{{0,4}}>",
        argument_end=r"<\s{0,4}/\s{0,4}parameter\s{0,4}>",
        call_end="</invoke>",
        block_end="</minimax:tool_call>",
        has_only_known_functions=True,
    )
