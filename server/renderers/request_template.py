"""A chat template that came with a request.

It takes the place of the tokenizer that renders other templates.
"""

from typing import Any, Literal

import jinja2

from server.errors import RequestError
from server.renderers.conversations.content_format import ContentFormat
from server.renderers.conversations.messages import Message
from server.renderers.template_process import TemplateProcess


class RequestTemplate:
    """Implements `AppliesChatTemplate` without compiling or running the template in this process."""

    def __init__(self, process: TemplateProcess, template: str, special_tokens: dict[str, Any]) -> None:
        """`special_tokens` are variables of the template; other variables of the same name override them."""
        self.template = template
        self._process = process
        self._special_tokens = special_tokens

    def content_format(self, wanted: Literal["auto", "string", "openai"]) -> ContentFormat:
        """Resolves `--chat-template-content-format` for this template.

        Raises:
            RequestError: the template exceeded a limit while it was analysed.
        """
        if wanted != "auto":
            return wanted
        try:
            return "openai" if self._process.content_format(self.template) == "openai" else "string"
        except jinja2.TemplateError as err:
            raise RequestError(f"the chat template failed: {err}", param="chat_template") from err

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> str:
        """Renders in the helper process; raises jinja2.TemplateError for every failure."""
        del options["tokenize"]
        return self._process.render(conversation, self._special_tokens | options)
