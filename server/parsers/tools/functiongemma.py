"""FunctionGemma's calls: `<start_function_call>call:NAME{KEY:<escape>VALUE<escape>}<end_function_call>`."""

from typing import ClassVar

from server.parsers.tools.markup import Markup, MarkupParser


class FunctionGemmaParser(MarkupParser):
    """The types of values are those of the schema."""

    markup: ClassVar = Markup(
        call=r"<start_function_call>call:(?P<name>\w{1,256})\{",
        argument=r",?\s{0,16}+(?<!\w)(?P<key>\w{1,256}+):<escape>",
        argument_end="<escape>",
        call_end=r"\}?<end_function_call>",
    )
