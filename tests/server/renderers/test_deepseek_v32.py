"""Conversations in DeepSeek-V3.2's published format, feature by feature."""

from typing import Any

import pytest

from server.errors import RequestError
from server.renderers.deepseek_v32 import encode_conversation
from server.renderers.messages import to_conversation

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Wetter für 北京", "parameters": {"type": "object"}},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}

TOOLS_OF_BOTH = """## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply \
to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>
String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects \
should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" \
for other types (numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking \
block. Here is an example:
<｜DSML｜function_calls>
...
</｜DSML｜function_calls>
<function_results>
...
</function_results>
<think>...thinking about results</think>
Here are the functions available in JSONSchema format:
<functions>
{"name": "get_weather", "description": "Wetter für 北京", "parameters": {"type": "object"}}
{"name": "clock"}
</functions>
"""


def write(*messages: dict[str, Any], **options: Any) -> str:
    return encode_conversation(to_conversation(list(messages), "string"), **options)


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str | None, *calls: dict[str, Any], reasoning: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), "reasoning": reasoning}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


def test_a_user_message_ends_with_the_marker_of_the_answer() -> None:
    assert write(user("hello")) == f"{BEGIN}{USER}hello{ASSISTANT}</think>"
    assert write(user("hello"), is_thinking=True) == f"{BEGIN}{USER}hello{ASSISTANT}<think>"


def test_a_system_message_is_written_unchanged() -> None:
    assert write(system("Be terse.\n"), user("hi")) == f"{BEGIN}Be terse.\n{USER}hi{ASSISTANT}</think>"
    assert write(user("hi"), system("Now in French.")) == f"{BEGIN}{USER}hi{ASSISTANT}</think>Now in French."


def test_reasoning_of_earlier_turns_is_left_out() -> None:
    turns = [user("hello"), answer("Hello! I am DeepSeek.", reasoning="thinking..."), user("1+1=?")]
    earlier = f"{BEGIN}{USER}hello{ASSISTANT}</think>Hello! I am DeepSeek.{END}{USER}1+1=?{ASSISTANT}"
    assert write(*turns, is_thinking=True) == f"{earlier}<think>"
    assert write(*turns) == f"{earlier}</think>"


def test_reasoning_after_the_last_question_is_written_with_thinking_on() -> None:
    turns = [user("hello"), answer("Hi.", reasoning="Greet.")]
    assert write(*turns, is_thinking=True) == f"{BEGIN}{USER}hello{ASSISTANT}<think>Greet.</think>Hi.{END}"
    assert write(*turns) == f"{BEGIN}{USER}hello{ASSISTANT}</think>Hi.{END}"


def test_reasoning_may_have_deepseek_s_own_name() -> None:
    turns = [user("q"), {"role": "assistant", "content": "a", "reasoning_content": "r"}]
    assert write(*turns, is_thinking=True).endswith("<think>r</think>a" + END)


def test_an_answer_without_reasoning_cannot_follow_the_last_question_with_thinking_on() -> None:
    with pytest.raises(RequestError, match="needs reasoning or tool_calls") as raised:
        write(user("hello"), answer("Hi."), is_thinking=True)
    assert (raised.value.status, raised.value.param) == (400, "messages")


def test_reasoning_that_is_not_text_is_rejected() -> None:
    with pytest.raises(RequestError, match="reasoning must be text"):
        write(user("q"), {"role": "assistant", "content": "a", "reasoning": ["r"]}, is_thinking=True)


def test_the_request_s_tools_come_before_everything_else() -> None:
    assert write(system("Be terse."), user("hi"), tools=[WEATHER, CLOCK]) == (
        f"{BEGIN}\n\n{TOOLS_OF_BOTH}Be terse.{USER}hi{ASSISTANT}</think>"
    )
    assert write(user("hi"), tools=[WEATHER, CLOCK], is_thinking=True) == (
        f"{BEGIN}\n\n{TOOLS_OF_BOTH}{USER}hi{ASSISTANT}<think>"
    )


def test_a_tool_call_is_written_in_dsml() -> None:
    arguments = '{"city": "北京 \\"x\\"", "days": 3, "hourly": true, "at": [1, "two"], "opt": {"ü": null}}'
    assert write(user("hi"), answer("Looking.", call("get_weather", arguments))) == (
        f"""{BEGIN}{USER}hi{ASSISTANT}</think>Looking.

<｜DSML｜function_calls>
<｜DSML｜invoke name="get_weather">
<｜DSML｜parameter name="city" string="true">北京 "x"</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
<｜DSML｜parameter name="hourly" string="false">true</｜DSML｜parameter>
<｜DSML｜parameter name="at" string="false">[1, "two"]</｜DSML｜parameter>
<｜DSML｜parameter name="opt" string="false">{{"ü": null}}</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>{END}"""
    )


def test_results_follow_their_calls_and_end_with_the_marker_of_the_answer() -> None:
    turns = [
        user("hi"),
        answer(None, call("get_weather", '{"city": "Paris"}'), call("clock", ""), reasoning="Both."),
        result("sunny"),
        result("noon"),
    ]
    expected = f"""{BEGIN}{USER}hi{ASSISTANT}<think>Both.</think>

<｜DSML｜function_calls>
<｜DSML｜invoke name="get_weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="clock">

</｜DSML｜invoke>
</｜DSML｜function_calls>{END}

<function_results>
<result>sunny</result>
<result>noon</result>
</function_results>

<think>"""
    assert write(*turns, is_thinking=True) == expected
    plain = expected.replace("<think>Both.", "").removesuffix("<think>") + "</think>"
    assert write(*turns) == plain


def test_reasoning_between_tool_calls_is_kept_until_the_next_question() -> None:
    turns = [
        user("hi"),
        answer("", call("clock", "{}"), reasoning="Look."),
        result("noon"),
        answer("It is noon.", reasoning="Say it."),
    ]
    calls = (
        '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="clock">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'
    )
    results = "\n\n<function_results>\n<result>noon</result>\n</function_results>\n\n"
    assert write(*turns, is_thinking=True) == (
        f"{BEGIN}{USER}hi{ASSISTANT}<think>Look.</think>{calls}{END}{results}<think>Say it.</think>It is noon.{END}"
    )
    assert write(*turns, user("ok"), is_thinking=True) == (
        f"{BEGIN}{USER}hi{ASSISTANT}</think>{calls}{END}{results}</think>It is noon.{END}{USER}ok{ASSISTANT}<think>"
    )


@pytest.mark.parametrize(
    "turns",
    [
        [result("noon")],
        [user("hi"), result("noon")],
        [user("hi"), answer("Hi."), result("noon")],
        [user("hi"), answer("", call("clock", "{}")), result("noon"), result("again")],
        [user("hi"), answer("", call("clock", "{}")), user("so?"), result("noon")],
    ],
)
def test_a_result_without_its_call_is_rejected(turns: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match="must answer one of the tool_calls") as raised:
        write(*turns)
    assert raised.value.param == "messages"


def test_a_call_without_a_name_is_rejected() -> None:
    nameless = {"type": "function", "function": {"arguments": "{}"}}
    with pytest.raises(RequestError, match="function's name"):
        write(user("hi"), answer("", nameless))


def test_a_developer_message_is_a_question_with_instructions() -> None:
    developer = {"role": "developer", "content": "Search.", "tools": [WEATHER, CLOCK]}
    asked = f"{BEGIN}{USER}\n\n{TOOLS_OF_BOTH}\n\n# The user's message is: Search.{ASSISTANT}"
    assert write(developer) == f"{asked}</think>"
    assert write(developer, is_thinking=True) == f"{asked}<think>"
    assert write(developer, answer("a", reasoning="r"), is_thinking=True) == f"{asked}<think>r</think>a{END}"


@pytest.mark.parametrize("is_thinking", [False, True])
def test_a_developer_message_before_a_question_is_written_as_a_separate_question(is_thinking: bool) -> None:
    turns = [{"role": "developer", "content": "Be terse."}, user("hi")]
    developer = f"{USER}\n\n# The user's message is: Be terse.{ASSISTANT}</think>"
    mode = "<think>" if is_thinking else "</think>"
    assert write(*turns, is_thinking=is_thinking) == f"{BEGIN}{developer}{USER}hi{ASSISTANT}{mode}"


@pytest.mark.parametrize(
    ("developer", "reason"),
    [
        ({"content": ""}, "must not be empty"),
        ({"content": None}, "must not be null"),
        ({"content": "x", "tools": [{"name": "f"}]}, "must hold a function"),
        ({"content": "x", "tools": ["f"]}, "must hold a function"),
    ],
)
def test_a_malformed_developer_message_is_rejected(developer: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        write({"role": "developer", **developer})


def test_a_response_format_follows_the_instructions() -> None:
    schema = {"type": "object", "description": "für"}
    form = (
        "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
        '{"type": "object", "description": "für"}'
    )
    conversation = [{"role": "system", "content": "Be terse.", "response_format": schema}, user("hi")]
    assert encode_conversation(conversation) == f"{BEGIN}Be terse.\n\n{form}{USER}hi{ASSISTANT}</think>"
    developer = {"role": "developer", "content": "x", "tools": [WEATHER, CLOCK], "response_format": schema}
    assert encode_conversation([developer]) == (
        f"{BEGIN}{USER}\n\n{TOOLS_OF_BOTH}\n\n{form}\n\n# The user's message is: x{ASSISTANT}</think>"
    )


def test_a_continued_message_has_no_end_marker() -> None:
    turns = [user("hi"), answer("The capital of", reasoning="Paris.")]
    assert write(*turns, continues_final=True) == f"{BEGIN}{USER}hi{ASSISTANT}</think>The capital of"
    assert write(*turns, continues_final=True, is_thinking=True) == (
        f"{BEGIN}{USER}hi{ASSISTANT}<think>Paris.</think>The capital of"
    )


@pytest.mark.parametrize("last", [user("hi"), system("x"), answer("", call("clock", "{}"))])
def test_only_an_assistant_message_can_be_continued(last: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="continue_final_message needs"):
        write(user("hi"), last, continues_final=True)


def test_an_unknown_role_is_rejected() -> None:
    with pytest.raises(RequestError, match="got 'narrator'"):
        write(user("hi"), {"role": "narrator", "content": "x"})


def test_braces_and_markers_in_contents_stay_as_they_are() -> None:
    text = "{content} %s {{x}} </think>"
    assert write(user(text), answer(text), user("q"), tools=[CLOCK]).count(text) == 2
