"""Base of the renderers that turn a conversation into text with a chat template."""

from abc import abstractmethod
from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.conversations.chat_template import (
    AppliesChatTemplate,
    check_chat_template,
    safe_apply_chat_template,
)
from server.renderers.conversations.content_format import detect_content_format, resolve_content_format
from server.renderers.conversations.messages import to_conversation
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.tokenizer import Tokenizer


class TemplateRenderer(BaseRenderer):
    """Renders the operator's template, or else the model's."""

    image_token: str | None = None
    """The text that stands for an image in a prompt; None if the model takes no images."""

    def __init__(
        self, files: ModelFiles, config: RendererConfig, tokenizer: Tokenizer, *, executor: Executor | None = None
    ) -> None:
        if config.chat_template is not None:
            check_chat_template(config.chat_template)
        super().__init__(files, config, tokenizer, executor=executor)

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The template for conversations without tools; None if there is none."""

    def warm_up(self) -> None:
        if self.chat_template is not None:
            detect_content_format(self.chat_template)
        super().warm_up()

    def _apply(
        self,
        tokenizer: AppliesChatTemplate,
        template: str,
        messages: list[dict[str, Any]],
        options: ChatOptions,
    ) -> str:
        """Renders the messages with `tokenizer`, which applies the template."""
        content_format = resolve_content_format(template, self.config.chat_template_content_format)
        return safe_apply_chat_template(
            tokenizer,
            to_conversation(messages, content_format, self.image_token),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )
