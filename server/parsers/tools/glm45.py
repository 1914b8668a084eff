"""GLM's calls: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`."""

from typing import ClassVar

from server.parsers.tools.markup import Markup, MarkupParser


class Glm45Parser(MarkupParser):
    """GLM 4.5 to 4.7, and Ling 3."""

    markup: ClassVar = Markup(
        call=r"<tool_call>\s{0,64}+(?P<name>[^<>\s][^<>]{0,319}+)(?=<arg_key>|</tool_call>)",
        argument=r"<arg_key>\s{0,64}+(?P<key>[^<>\s][^<>]{0,319}+)</arg_key>\s{0,64}<arg_value>",
        argument_end="</arg_value>",
        call_end="</tool_call>",
        has_only_known_functions=True,
    )
