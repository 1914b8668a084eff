"""Renders for DeepSeek-V3.2: a Hugging Face tokenizer, and code instead of a chat template."""

from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.conversations.deepseek_v32 import encode_conversation
from server.renderers.conversations.messages import Message, to_conversation
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer


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
