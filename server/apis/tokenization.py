"""Answers /tokenize and /detokenize."""

from server.apis.tokenization_bodies import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from server.engine.process_link.client import EngineClient
from server.generation.tools import shown_tools
from server.http_body.conversation import opens_message
from server.operation.models import ServedModels
from server.operation.request_context import RequestContext
from server.renderers.base import BaseRenderer
from server.renderers.prompts import ChatOptions, RenderedPrompt, TextOptions


class TokenizationServing:
    """One per server; every method runs on the event loop."""

    def __init__(self, models: ServedModels, renderer: BaseRenderer, engine: EngineClient) -> None:
        self._models = models
        self._renderer = renderer
        self._engine = engine

    async def tokenize(self, request: TokenizeRequest, context: RequestContext) -> TokenizeResponse:
        """The token ids of the prompt that a completion of the same input would have.

        Raises:
            RequestError: the input cannot be rendered.
        """
        self._models.check(request.model)
        with context.times.rendering():
            token_ids = (await self._render(request, context)).token_ids
            pieces = await self._renderer.token_pieces_async(token_ids) if request.return_token_strs else None
        return TokenizeResponse(
            count=len(token_ids),
            max_model_len=self._engine.info.max_model_len,
            tokens=token_ids,
            token_strs=pieces,
        )

    async def detokenize(self, request: DetokenizeRequest, context: RequestContext) -> DetokenizeResponse:
        """The text of token ids.

        Raises:
            RequestError: an id is not a token.
        """
        self._models.check(request.model)
        with context.times.rendering():
            return DetokenizeResponse(await self._renderer.detokenize_async(request.tokens))

    async def _render(self, request: TokenizeRequest, context: RequestContext) -> RenderedPrompt:
        if request.messages is not None:
            chat = await self._renderer.run_unless(context.is_small, _chat_options, request)
            return await self._renderer.render_chat_async(request.messages, chat)
        options = TextOptions(add_special_tokens=request.add_special_tokens is not False)
        return await self._renderer.render_text_async(request.prompt or "", options)


def _chat_options(request: TokenizeRequest) -> ChatOptions:
    return ChatOptions(
        add_generation_prompt=opens_message(request.add_generation_prompt, request.continue_final_message),
        continue_final_message=request.continue_final_message,
        tools=shown_tools(request.tools),
        chat_template=request.chat_template,
        chat_template_kwargs=request.chat_template_kwargs or {},
        add_special_tokens=bool(request.add_special_tokens),
        mm_processor_kwargs=request.mm_processor_kwargs,
    )
