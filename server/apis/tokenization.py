"""Answers /tokenize and /detokenize."""

from typing import Any

from base.errors import RequestError
from server.engine.process_link.client import EngineClient
from server.generation.generation_request import Tool, shown_tools
from server.operation.admission import RequestContext
from server.operation.models import ServedModels
from server.terms.http_body.request_body import (
    Messages,
    RequestBody,
    TokenId,
    Unsupported,
    check_generation_prompt,
    check_unsupported,
    opens_message,
)
from server.text.renderers.prompts import ChatOptions, ProcessedImages, TextOptions
from server.text.renderers.renderer import Renderer


class TokenizeRequest(RequestBody, kw_only=True):
    """A text or a conversation. The fields below `messages` apply only to conversations."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: Unsupported = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    return_token_strs: Unsupported = False
    media_io_kwargs: Unsupported = None
    mm_processor_kwargs: Unsupported = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("Give either `prompt` or `messages`.", param="prompt")
        check_generation_prompt(self.add_generation_prompt, self.continue_final_message)


class DetokenizeRequest(RequestBody, kw_only=True):
    """Token ids to turn back into text."""

    model: str | None = None
    tokens: list[TokenId]


class TokenizationServing:
    """Serves /tokenize and /detokenize. Every method runs on the event loop."""

    def __init__(self, models: ServedModels, renderer: Renderer, engine: EngineClient) -> None:
        self._models = models
        self._renderer = renderer
        self._engine = engine

    async def tokenize(self, request: TokenizeRequest, context: RequestContext) -> dict[str, Any]:
        """Returns a prompt's token ids, as for a completion or chat. Raises RequestError for bad input."""
        self._models.check(request.model)
        with context.times.rendering():
            images = await self._renderer.load_images(request.messages or [], context.lease)
            return await self._renderer.pools.run(self._tokenize, request, images)

    async def detokenize(self, request: DetokenizeRequest, context: RequestContext) -> dict[str, Any]:
        """Returns the text of token ids. Raises RequestError if an id is not a token."""
        self._models.check(request.model)
        with context.times.rendering():
            return {"prompt": await self._renderer.pools.run(self._renderer.detokenize, request.tokens)}

    def _tokenize(self, request: TokenizeRequest, images: ProcessedImages | None) -> dict[str, Any]:
        if request.messages is not None:
            chat_options = ChatOptions(
                add_generation_prompt=opens_message(request.add_generation_prompt, request.continue_final_message),
                continue_final_message=request.continue_final_message,
                tools=shown_tools(request.tools),
                chat_template_kwargs=request.chat_template_kwargs or {},
                add_special_tokens=bool(request.add_special_tokens),
            )
            prompt = self._renderer.render_chat(request.messages, chat_options, images)
        else:
            options = TextOptions(add_special_tokens=request.add_special_tokens is not False)
            prompt = self._renderer.prompts.render(request.prompt or "", options)
        return {
            "count": len(prompt.token_ids),
            "max_model_len": self._engine.info.max_model_len,
            "tokens": prompt.token_ids,
            "token_strs": None,
        }
