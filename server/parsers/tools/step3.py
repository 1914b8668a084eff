"""Step 3's calls: `<steptml:invoke name="NAME"><steptml:parameter name="KEY">VALUE</steptml:parameter>`."""

from typing import ClassVar

from server.parsers.tools.markup import Markup, MarkupParser


class Step3Parser(MarkupParser):
    """Each call is between tokens, and so is the group of calls."""

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
