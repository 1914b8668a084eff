"""Renders with a tokenizer in Mistral's own format; mistral-common's code builds prompts, not a template."""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

from mistral_common.exceptions import InvalidToolException, InvalidToolSchemaException, MistralCommonException
from mistral_common.protocol.instruct.chunk import ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from pydantic import ValidationError

from base.errors import RequestError
from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.prompts import TEXT_KEYS, ChatOptions, Message, check_unicode, to_conversation
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.mistral_tokenizer import MistralTokenizer

logger = logging.getLogger(__name__)

_REQUEST_ERRORS = (MistralCommonException, ValueError, AssertionError)
"""The errors with which mistral-common rejects a conversation."""

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
        ValueError, MistralCommonException: mistral-common rejects a field.
    """
    checked = to_conversation(messages, "openai")
    _check_last(checked[-1]["role"], options)
    converted = [_to_message(*pair) for pair in zip(messages, checked, strict=True)]
    is_continued = options.continue_final_message
    return ChatCompletionRequest.from_openai(
        converted, options.tools or None, continue_final_message=is_continued, **settings
    )


def _to_message(message: Message, checked: Message) -> Message:
    """The message with the parts and call ids that mistral-common knows.

    `checked` is the same message from `to_conversation`, which has rejected malformed ones.
    """
    role, content = checked["role"], message.get("content")
    if content is None and role != "assistant":
        raise RequestError(f"a message of role {role!r} needs content", param="messages")
    if isinstance(content, list):
        content = [_to_part(part) for part in content]
    converted = checked | {"role": "system" if role == "developer" else role, "content": content}
    if role == "tool":
        converted["tool_call_id"] = _to_call_id(message.get("tool_call_id"))
    elif calls := checked.get("tool_calls"):
        converted["tool_calls"] = [_to_call(call) for call in calls]
    return converted


def _to_part(part: Any) -> Message:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part["type"]
    if kind == "thinking":
        return {"type": kind, "thinking": part["thinking"], "closed": part.get("closed", True)}
    return {"type": "text", "text": part[TEXT_KEYS[kind]]}


def _to_call(call: Message) -> Message:
    function = {"name": call["function"].get("name"), "arguments": call["function"]["arguments"]}
    call_id = _to_call_id(call.get("id"))
    return {"function": function} if call_id is None else {"id": call_id, "function": function}


def _to_call_id(call_id: Any) -> Any:
    return call_id[-_CALL_ID_CHARS:] if isinstance(call_id, str) else call_id


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
