"""Base of the renderers that turn a conversation into text with a chat template."""

from abc import abstractmethod
from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.conversations.chat_template import AppliesChatTemplate, safe_apply_chat_template
from server.renderers.conversations.content_format import detect_content_format, resolve_content_format
from server.renderers.conversations.messages import to_conversation
from server.renderers.prompts import ChatOptions
from server.renderers.request_template import RequestTemplate
from server.renderers.template_process import TemplateProcess
from server.renderers.tokenizers.tokenizer import Tokenizer


class TemplateRenderer(BaseRenderer):
    """Renders the operator's or the model's template in this process, a request's in `TemplateProcess`."""

    image_token: str | None = None
    """The text that stands for an image in a prompt; None if the model takes no images."""

    def __init__(
        self, files: ModelFiles, config: RendererConfig, tokenizer: Tokenizer, *, executor: Executor | None = None
    ) -> None:
        super().__init__(files, config, tokenizer, executor=executor)
        self._template_process = TemplateProcess()

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The template for conversations without tools; None if there is none."""

    def warm_up(self) -> None:
        if self.chat_template is not None:
            detect_content_format(self.chat_template)
        super().warm_up()

    def close(self) -> None:
        super().close()
        self._template_process.close()

    def _given_template(self, options: ChatOptions) -> str | None:
        """The request's template, or else the operator's.

        Raises:
            RequestError: the server does not accept templates in requests.
        """
        if options.chat_template is None:
            return self.config.chat_template
        if not self.config.trust_request_chat_template:
            raise RequestError(
                "a chat_template in the request is only accepted when the server runs with "
                "--trust-request-chat-template",
                param="chat_template",
            )
        return options.chat_template

    def _request_template(self, template: str, special_tokens: dict[str, Any]) -> RequestTemplate:
        return RequestTemplate(self._template_process, template, special_tokens)

    def _apply(
        self,
        tokenizer: AppliesChatTemplate | RequestTemplate,
        template: str,
        messages: list[dict[str, Any]],
        options: ChatOptions,
    ) -> str:
        """Renders the messages.

        A `RequestTemplate` takes the place of a tokenizer for a request's own template.
        """
        wanted = self.config.chat_template_content_format
        if isinstance(tokenizer, RequestTemplate):
            content_format = tokenizer.content_format(wanted)
        else:
            content_format = resolve_content_format(template, wanted)
        return safe_apply_chat_template(
            tokenizer,
            to_conversation(messages, content_format, self.image_token),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )
