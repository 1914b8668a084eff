"""Renders for DeepSeek-V3.2: a Hugging Face tokenizer, and code instead of a chat template.

The model's authors publish its format as code (`encoding/encoding_dsv32.py` next to the weights). This
module's output equals that code's output, character for character:

- A user's turn contains the marker that begins the answer, and the mode of the answer: `<think>` or
  `</think>`.
- Reasoning is written only after the last question; earlier turns are written without it.
- The request's tools come first, in a separate system message.

With thinking on, the published code fails on a developer message before the user's last message. This module
writes such a message as with thinking off.
"""

import json
from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.messages import Message, to_conversation
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_USER, _ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_THINK, _END_THINK = "<think>", "</think>"
_DSML = "｜DSML｜"

_TOOLS = f"""## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{_DSML}function_calls>" block like the following as part of your reply to \
the user:
<{_DSML}function_calls>
<{_DSML}invoke name="$FUNCTION_NAME">
<{_DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{_DSML}parameter>
...
</{_DSML}invoke>
<{_DSML}invoke name="$FUNCTION_NAME2">
...
</{_DSML}invoke>
</{_DSML}function_calls>
String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:
<{_DSML}function_calls>
...
</{_DSML}function_calls>
<function_results>
...
</function_results>
{_THINK}...thinking about results{_END_THINK}
Here are the functions available in JSONSchema format:
<functions>
%s
</functions>
"""
_RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n%s"
_DEVELOPER = "# The user's message is: %s"


class DeepseekV32Renderer(BaseRenderer):
    """`chat_template_kwargs` turn thinking on: `thinking` or `enable_thinking`, as in vLLM.

    In this format the marker of the assistant's turn is part of the user's message, so
    `add_generation_prompt` has no effect. Build it on the main thread: loading may import torch.
    """

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        if config.chat_template is not None:
            raise TokenizerLoadError(
                "--chat-template cannot be combined with --tokenizer-mode deepseek_v32, which encodes messages by "
                "code: leave it out, or choose --tokenizer-mode hf"
            )
        tokenizer = HfTokenizer.from_folder(files.tokenizer_path, trust_remote_code=config.trust_remote_code)
        super().__init__(files, config, tokenizer, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        return encode_conversation(
            _with_response_formats(to_conversation(messages, "string"), messages),
            tools=options.tools,
            is_thinking=_is_thinking(self.config.default_chat_template_kwargs | options.chat_template_kwargs),
            continues_final=options.continue_final_message,
        )


def _with_response_formats(conversation: list[Message], messages: list[dict[str, Any]]) -> list[Message]:
    """Adds each message's `response_format`, which only this format supports."""
    return [
        message | {"response_format": given.get("response_format")}
        for message, given in zip(conversation, messages, strict=True)
    ]


def _is_thinking(template_kwargs: dict[str, Any]) -> bool:
    wanted = {name: template_kwargs.get(name) for name in ("thinking", "enable_thinking")}
    for name, value in wanted.items():
        if value not in (True, False, None):
            raise RequestError(f"{name} must be true or false, got {value!r}", param="chat_template_kwargs")
    return any(wanted.values())


def encode_conversation(
    conversation: list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    is_thinking: bool = False,
    continues_final: bool = False,
) -> str:
    """The prompt's text, from messages with their contents as text.

    System and developer messages may hold `tools` and a `response_format`. With `continues_final` the last
    message, the assistant's, gets no end marker.

    Raises:
        RequestError: the format cannot express the conversation.
    """
    if continues_final:
        _check_can_be_continued(conversation[-1])
    if tools:
        conversation = [{"role": "system", "content": "", "tools": tools}, *conversation]
    writer = _Writer(_last_question(conversation), is_thinking)
    text = _BEGIN + "".join(writer.write(index, message) for index, message in enumerate(conversation))
    return text.removesuffix(_END) if continues_final else text


class _Writer:
    """Writes the messages in order; keeps count of tool calls and their results."""

    def __init__(self, last_question: int, is_thinking: bool) -> None:
        self._last_question = last_question
        self._is_thinking = is_thinking
        self._num_calls = 0
        self._num_results = 0

    def write(self, index: int, message: Message) -> str:
        role, content = message["role"], message["content"]
        if role == "tool":
            return self._result(content, mode=self._mode(index >= self._last_question))
        self._num_calls = self._num_results = 0
        if role == "assistant":
            self._num_calls = len(message.get("tool_calls", ()))
            return self._answer(message, is_shown_thinking=self._is_thinking and index > self._last_question)
        if role == "system":
            return "\n\n".join([content, *_instructions(message)])
        if role == "developer":
            content = _developer_content(message)
        elif role != "user":
            raise _fault(f"roles are system, developer, user, assistant and tool, got {role!r}")
        return f"{_USER}{content}{_ASSISTANT}{self._mode(index == self._last_question)}"

    def _mode(self, is_current: bool) -> str:
        return _THINK if self._is_thinking and is_current else _END_THINK

    def _result(self, content: str, *, mode: str) -> str:
        self._num_results += 1
        if self._num_results > self._num_calls:
            raise _fault("each tool message must answer one of the tool_calls of the assistant message before it")
        opening = "\n\n<function_results>" if self._num_results == 1 else ""
        closing = f"\n</function_results>\n\n{mode}" if self._num_results == self._num_calls else ""
        return f"{opening}\n<result>{content}</result>{closing}"

    def _answer(self, message: Message, *, is_shown_thinking: bool) -> str:
        thoughts = _reasoning(message) + _END_THINK if is_shown_thinking else ""
        return f"{thoughts}{message['content']}{_calls_block(message.get('tool_calls'))}{_END}"


def _last_question(conversation: list[Message]) -> int:
    """Index of the last message of a user or developer; -1 if there is none."""
    indexes = range(len(conversation) - 1, -1, -1)
    return next((index for index in indexes if conversation[index]["role"] in ("user", "developer")), -1)


def _check_can_be_continued(message: Message) -> None:
    if message["role"] != "assistant" or message.get("tool_calls"):
        raise _fault("continue_final_message needs an assistant's message without tool_calls as the last one")


def _instructions(message: Message) -> list[str]:
    """The blocks of a system or developer message that describe tools and the response format."""
    blocks = []
    if tools := message.get("tools"):
        blocks.append(_TOOLS % "\n".join(_to_json(_function_of(tool)) for tool in tools))
    if response_format := message.get("response_format"):
        blocks.append(_RESPONSE_FORMAT % _to_json(response_format))
    return blocks


def _developer_content(message: Message) -> str:
    if not message["content"]:
        raise _fault("a developer message must not be empty")
    return "\n\n".join(["", *_instructions(message), _DEVELOPER % message["content"]])


def _reasoning(message: Message) -> str:
    reasoning: object = message.get("reasoning") or ""
    if not isinstance(reasoning, str):
        raise _fault(f"reasoning must be text, got {reasoning!r}")
    if not reasoning and not message.get("tool_calls"):
        raise _fault("with thinking on, an assistant message after the last question needs reasoning or tool_calls")
    return reasoning


def _calls_block(calls: list[Message] | None) -> str:
    if not calls:
        return ""
    invocations = "\n".join(_invocation(call["function"]) for call in calls)
    return f"\n\n<{_DSML}function_calls>\n{invocations}\n</{_DSML}function_calls>"


def _invocation(function: Message) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise _fault(f"each of tool_calls needs a function's name, got {name!r}")
    parameters = "\n".join(_parameter(key, value) for key, value in function["arguments"].items())
    return f'<{_DSML}invoke name="{name}">\n{parameters}\n</{_DSML}invoke>'


def _parameter(name: str, value: Any) -> str:
    is_text = isinstance(value, str)
    attributes = f'name="{name}" string="{str(is_text).lower()}"'
    return f"<{_DSML}parameter {attributes}>{value if is_text else _to_json(value)}</{_DSML}parameter>"


def _function_of(tool: Any) -> Any:
    if not isinstance(tool, dict) or "function" not in tool:
        raise _fault(f"each of a message's tools must hold a function, got {tool!r}")
    return tool["function"]


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fault(message: str) -> RequestError:
    return RequestError(message, param="messages")
