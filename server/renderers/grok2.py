"""Renders with Grok-2's tokenizer and a chat template."""

from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.chat_template import AppliesChatTemplate, check_chat_template, safe_apply_chat_template
from server.renderers.content_format import detect_content_format, resolve_content_format
from server.renderers.foreign_template import ForeignTemplate
from server.renderers.grok2_tokenizer import Grok2Tokenizer
from server.renderers.messages import to_conversation
from server.renderers.prompts import ChatOptions


class Grok2Renderer(BaseRenderer):
    """Takes the operator's template, the checkpoint's, or Grok-2's own, in this order."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        if config.chat_template is not None:
            check_chat_template(config.chat_template)
        self._grok2 = Grok2Tokenizer.from_folder(files.tokenizer_path)
        super().__init__(files, config, self._grok2, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        template = self._given_template(options) or self._grok2.chat_template
        wanted = self.config.chat_template_content_format
        applies: AppliesChatTemplate = self._grok2
        if options.chat_template is None:
            content_format = resolve_content_format(template, wanted)
        else:
            applies = foreign = ForeignTemplate(self._template_process, template, {})
            content_format = foreign.content_format(wanted)
        return safe_apply_chat_template(
            applies,
            to_conversation(messages, content_format),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )

    @property
    def chat_template(self) -> str:
        return self.config.chat_template or self._grok2.chat_template

    def warm_up(self) -> None:
        detect_content_format(self.chat_template)
        super().warm_up()
