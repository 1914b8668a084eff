"""Renders with a tokenizer in Mistral's own format; mistral-common's code builds prompts, not a template."""

import logging
from concurrent.futures import Executor
from typing import Any

from mistral_common.exceptions import InvalidToolException, InvalidToolSchemaException, MistralCommonException
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from pydantic import ValidationError

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.conversations.mistral import has_thinking, texts_of, to_request
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.mistral_tokenizer import MistralTokenizer

logger = logging.getLogger(__name__)

_REQUEST_ERRORS = (MistralCommonException, ValueError, AssertionError)
"""The errors with which mistral-common rejects a conversation."""


class MistralRenderer(BaseRenderer):
    """All threads share one `MistralTokenizer`."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        _check_config(config)
        self._mistral = MistralTokenizer.from_folder(files.tokenizer_path)
        super().__init__(files, config, self._mistral, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> list[int]:
        _check_variables(options)
        try:
            request = to_request(messages, options, **self._settings(options))
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
        super().warm_up()

    def _settings(self, options: ChatOptions) -> dict[str, Any]:
        """The settings that the tokenizer can write into a prompt; older tokenizer versions ignore them."""
        if not self._mistral.has_reasoning_effort:
            return {}
        given = self.config.default_chat_template_kwargs | options.chat_template_kwargs
        return {"reasoning_effort": given.get("reasoning_effort")}

    def _check_request(self, request: ChatCompletionRequest[Any], options: ChatOptions) -> None:
        if has_thinking(request) and not self._mistral.has_thinking:
            raise RequestError(
                f"this model's tokenizer (v{self._mistral.version}) has no tokens for reasoning: leave 'reasoning', "
                "'reasoning_content' and 'thinking' out of the messages",
                param="messages",
            )
        text = "".join(texts_of(request))
        if self._token_limit(options) is None:
            self._check_length(text, "messages")
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise RequestError("messages is not valid Unicode: it holds a lone surrogate", param="messages") from err


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
