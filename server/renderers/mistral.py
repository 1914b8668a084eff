"""Renders with a tokenizer in Mistral's own format; mistral-common's code builds prompts, not a template."""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

from mistral_common.exceptions import InvalidToolException, InvalidToolSchemaException, MistralCommonException
from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool, ToolCall
from pydantic import ValidationError

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.messages import TEXT_KEYS, Message, to_conversation
from server.renderers.prompts import ChatOptions, check_unicode
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.mistral_tokenizer import MistralTokenizer

logger = logging.getLogger(__name__)

_REQUEST_ERRORS = (MistralCommonException, ValueError, AssertionError)
"""The errors with which mistral-common rejects a conversation."""

_Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage
_Content = str | list[Any]
"""Text, or chunks of text and of reasoning."""

_CALL_ID_CHARS = 9
"""Length of Mistral's call ids; of longer ids from other sources, the random end is kept."""


class MistralRenderer(BaseRenderer):
    """Renders with mistral-common."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        _check_config(config)
        self._mistral = MistralTokenizer.from_folder(files.tokenizer_path)
        super().__init__(files, config, self._mistral, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> list[int]:
        _check_variables(options)
        try:
            request = _to_request(messages, options, **self._settings(options))
            self._check_request(request, options)
            return self._mistral.encode_chat(request)
        except RequestError:
            raise
        except Exception as err:  # the library rejects with its own errors, ValueErrors and assertions alike
            if not isinstance(err, _REQUEST_ERRORS):
                logger.exception("mistral-common failed to encode a conversation")
            is_tool = isinstance(err, InvalidToolException | InvalidToolSchemaException)
            raise RequestError(_reason(err), param="tools" if is_tool else "messages") from err

    def warm_up(self) -> None:
        self.render_messages([{"role": "user", "content": "Hello"}], ChatOptions())

    def _settings(self, options: ChatOptions) -> dict[str, Any]:
        """The settings that the tokenizer can write into a prompt; older tokenizer versions ignore them."""
        if not self._mistral.has_reasoning_effort:
            return {}
        given = self.config.default_chat_template_kwargs | options.chat_template_kwargs
        return {"reasoning_effort": given.get("reasoning_effort")}

    def _check_request(self, request: ChatCompletionRequest[Any], options: ChatOptions) -> None:
        if _has_thinking(request) and not self._mistral.has_thinking:
            raise RequestError(
                f"this model's tokenizer (v{self._mistral.version}) has no tokens for reasoning: leave 'reasoning', "
                "'reasoning_content' and 'thinking' out of the messages",
                param="messages",
            )
        text = "".join(_texts_of(request))
        if self._token_limit(options) is None:
            self._check_length(text, "messages")
        check_unicode(text, "messages")


def _check_variables(options: ChatOptions) -> None:
    effort = {"reasoning_effort", "enable_thinking"} if "reasoning_effort" in options.chat_template_kwargs else set()
    if names := sorted(options.chat_template_kwargs.keys() - effort):
        raise RequestError(
            f"chat_template_kwargs is not supported for Mistral tokenizers, got {', '.join(names)}",
            param="chat_template_kwargs",
        )


def _check_config(config: RendererConfig) -> None:
    if config.chat_template is not None:
        raise TokenizerLoadError(
            "--chat-template cannot be combined with --tokenizer-mode mistral, where mistral-common renders messages: "
            "leave it out, or choose --tokenizer-mode hf"
        )
    if names := sorted(config.default_chat_template_kwargs.keys() - {"reasoning_effort"}):
        logger.warning("--default-chat-template-kwargs: %s has no effect with a Mistral tokenizer", ", ".join(names))


def _reason(err: Exception) -> str:
    if isinstance(err, ValidationError):
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in err.errors())
    return str(err) or type(err).__name__


def _to_request(messages: list[Message], options: ChatOptions, **settings: Any) -> ChatCompletionRequest[Any]:
    """Builds the request; `settings` are further fields of it.

    Raises:
        RequestError: a message is malformed, or holds something other than text.
        ValidationError: a field has the wrong type (pydantic's).
    """
    checked = to_conversation(messages, "openai")
    _check_last(checked[-1]["role"], options)
    converted = [_to_message(*pair) for pair in zip(messages, checked, strict=True)]
    if options.continue_final_message:
        converted[-1] = converted[-1].model_copy(update={"prefix": True})
    tools = [_to_tool(tool["function"]) for tool in options.tools or ()]
    return ChatCompletionRequest[Any](messages=converted, tools=tools or None, **settings)


def _texts_of(request: ChatCompletionRequest[Any]) -> Iterator[str]:
    """The texts of the messages: contents, reasoning and the arguments of tool calls."""
    for message in request.messages:
        if isinstance(message.content, str):
            yield message.content
        elif message.content is not None:
            yield from (chunk.thinking if isinstance(chunk, ThinkChunk) else chunk.text for chunk in message.content)
        if isinstance(message, AssistantMessage):
            yield from (call.function.arguments for call in message.tool_calls or ())


def _has_thinking(request: ChatCompletionRequest[Any]) -> bool:
    """Whether a message contains reasoning."""
    contents = [message.content for message in request.messages if isinstance(message.content, list)]
    return any(isinstance(chunk, ThinkChunk) for content in contents for chunk in content)


def _check_last(role: str, options: ChatOptions) -> None:
    """Checks the last message's role: in Mistral's format it alone determines whose turn is next."""
    if options.continue_final_message and role != "assistant":
        raise RequestError(
            f"continue_final_message needs a last message of role 'assistant', got {role!r}",
            param="continue_final_message",
        )
    if role == "assistant" and not options.continue_final_message:
        raise RequestError(
            "the last message is of role 'assistant': set continue_final_message to true and add_generation_prompt to "
            "false to have it continued",
            param="messages",
        )


def _to_message(message: Message, checked: Message) -> _Message:
    """`checked` is the same message from `to_conversation`, which has rejected malformed ones."""
    role, content = checked["role"], _to_content(message.get("content"))
    if role == "assistant":
        calls = [_to_call(call) for call in checked.get("tool_calls", ())]
        return AssistantMessage(content=_with_reasoning(message, content), tool_calls=calls or None)
    if content is None:
        raise RequestError(f"a message of role {role!r} needs content", param="messages")
    if role == "user":
        return UserMessage(content=content)
    if role in ("system", "developer"):
        return SystemMessage(content=content)
    if role == "tool":
        call_id = _to_call_id(message.get("tool_call_id"))
        return ToolMessage(content=content, tool_call_id=call_id, name=checked.get("name"))
    raise RequestError(
        f"messages must be of role 'system', 'developer', 'user', 'assistant' or 'tool', got {role!r}", param="messages"
    )


def _to_content(content: Any) -> _Content | None:
    return content if content is None or isinstance(content, str) else [_to_chunk(part) for part in content]


def _to_chunk(part: Any) -> TextChunk | ThinkChunk:
    if isinstance(part, str):
        return TextChunk(text=part)
    kind = part["type"]
    if kind == "thinking":
        return ThinkChunk(thinking=part.get("thinking") or "", closed=part.get("closed", True))
    return TextChunk(text=part.get(TEXT_KEYS[kind]) or "")


def _with_reasoning(message: Message, content: _Content | None) -> _Content | None:
    """The content, preceded by the reasoning if the message has it in a field of its own."""
    fields = (message.get("reasoning"), message.get("reasoning_content"))
    reasoning = next((text for text in fields if text is not None), None)
    if reasoning is None:
        return content
    chunks: list[Any] = [TextChunk(text=content)] if isinstance(content, str) else content or []
    if any(isinstance(chunk, ThinkChunk) for chunk in chunks):
        raise RequestError(
            "a message must give its reasoning either as 'thinking' content or as 'reasoning', not both",
            param="messages",
        )
    return [ThinkChunk(thinking=reasoning), *chunks]


def _to_call(call: Message) -> ToolCall:
    call_id = _to_call_id(call.get("id"))
    function = FunctionCall(name=call["function"].get("name"), arguments=call["function"]["arguments"])
    return ToolCall(function=function) if call_id is None else ToolCall(id=call_id, function=function)


def _to_call_id(call_id: Any) -> Any:
    return call_id[-_CALL_ID_CHARS:] if isinstance(call_id, str) else call_id


def _to_tool(function: dict[str, Any]) -> Tool:
    parameters = function.get("parameters") or {}
    return Tool(
        function=Function(name=function["name"], description=function.get("description") or "", parameters=parameters)
    )
