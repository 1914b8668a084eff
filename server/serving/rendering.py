"""Answers the render routes: the prompt of a chat or completion as a body for /inference/v1/generate."""

import json
from typing import Any

import msgspec

from server.errors import RequestError
from server.parsers.base import PromptEnd
from server.protocol.anthropic import MessagesRequest
from server.protocol.chat import ChatRequest
from server.protocol.completions import CompletionRequest
from server.protocol.responses.request import ResponsesRequest
from server.protocol.tokens import RenderedRequest, RenderedWith, TokensSampling
from server.serving.anthropic import MessagesServing
from server.serving.chat_options import template_kwargs
from server.serving.chat_run import ChatRun, ChatRunner
from server.serving.completions import render_completion
from server.serving.generation import Generation
from server.serving.inference import Inference
from server.serving.preparation import GenerationBuilder
from server.serving.request_context import RequestContext
from server.serving.responses.archive import invalid_response
from server.serving.responses.serving import ResponsesServing
from server.types import GuidedDecoding, SamplingParams

_COPIED = (
    *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "logprobs"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "prompt_logprobs"),
)
"""Parameters that the engine has under the same names."""


class RenderServing:
    """One per server; every method runs on the event loop."""

    def __init__(
        self,
        inference: Inference,
        builder: GenerationBuilder,
        runner: ChatRunner,
        messages: MessagesServing,
        responses: ResponsesServing,
    ) -> None:
        self._inference = inference
        self._builder = builder
        self._runner = runner
        self._messages = messages
        self._responses = responses

    async def chat(self, request: ChatRequest, context: RequestContext) -> RenderedRequest:
        """The prompt and the parameters that /v1/chat/completions would send to the engine.

        Raises:
            RequestError: the request is invalid, or has images.
        """
        self._inference.models.check_generative("Chat Completions Render")
        _check_no_beam_search(request)
        run = await self._runner.start(request, context)
        return await self._render(run, run.id)

    async def messages(self, request: MessagesRequest, context: RequestContext) -> RenderedRequest:
        """`chat` for a request of /v1/messages."""
        return await self.chat(await self._messages.convert(request, context), context)

    async def responses(self, request: ResponsesRequest, context: RequestContext) -> RenderedRequest:
        """`chat` for a request of /v1/responses; as in vLLM, responses that are kept are no part of it."""
        self._inference.models.check_generative("Responses Render")
        if request.previous_response_id is not None:
            raise invalid_response(
                "The render endpoint does not support previous_response_id: it keeps no responses.",
                "previous_response_id",
            )
        run = await self._responses.prepare(request, context)
        return await self._render(run.chat, run.response.id)

    async def _render(self, run: ChatRun, request_id: str) -> RenderedRequest:
        request = run.request
        rendered = await self._render_prompt(run.generation, 0, request_id)
        reasoning = run.generation.reasoning[0]
        if reasoning is not None:
            rendered.reasoning_ended = reasoning.prompt_end is PromptEnd.ENDED
        if not request.include_reasoning:
            rendered.reasoning_ended = True
        if self._inference.config.reasoning_parser is not None:
            defaults = self._inference.renderer.config.default_chat_template_kwargs
            rendered.reasoning_parser_kwargs = RenderedWith(chat_template_kwargs=defaults | template_kwargs(request))
        return rendered

    async def completions(self, request: CompletionRequest, context: RequestContext) -> bytes:
        """The prompts and parameters of /v1/completions, as a list.

        Raises:
            RequestError: the request is invalid, or has embeddings.
        """
        self._inference.models.check_generative("Completions Render")
        self._inference.models.check(request.model)
        _check_no_beam_search(request)
        with context.times.rendering():
            prompts = await render_completion(self._inference, request)
        generation = await self._builder.build(request, prompts, context, id_prefix="cmpl")
        ids = [generation.request_id]
        if len(prompts) > 1:
            ids = [f"{generation.request_id}-{index}" for index in range(len(prompts))]
        rendered = [await self._render_prompt(generation, index, name) for index, name in enumerate(ids)]
        return msgspec.json.encode(rendered)

    async def _render_prompt(self, generation: Generation, index: int, request_id: str) -> RenderedRequest:
        request, prompt = generation.request, generation.prompts[index]
        if prompt.inputs is not None:
            raise RequestError("Prompts with images or embeddings cannot be rendered as token ids.", param="messages")
        offsets = None
        if request.return_token_offsets:
            special = request.add_special_tokens
            offsets = await self._inference.renderer.find_offsets(prompt, add_special_tokens=special)
        return RenderedRequest(
            request_id=request_id,
            token_ids=prompt.token_ids,
            token_offsets=offsets,
            sampling_params=_sampling(request, generation.params[index]),
            model=request.model,
            stream=bool(request.stream),
            stream_options=request.stream_options,
            cache_salt=request.cache_salt,
            priority=request.priority,
        )


def _check_no_beam_search(request: ChatRequest | CompletionRequest) -> None:
    if request.use_beam_search:
        raise RequestError("Beam search is not supported by the render endpoint", param="use_beam_search")


def _sampling(request: ChatRequest | CompletionRequest, params: SamplingParams) -> TokensSampling:
    values: dict[str, Any] = {name: getattr(params, name) for name in _COPIED}
    return TokensSampling(
        n=request.num_choices,
        stop=list(request.stop_strings),
        stop_token_ids=list(params.stop_token_ids),
        include_stop_str_in_output=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        spaces_between_special_tokens=request.spaces_between_special_tokens,
        logprob_token_ids=list(params.logprob_token_ids) or None,
        logit_bias=params.logit_bias or None,
        allowed_token_ids=list(params.allowed_token_ids) or None,
        bad_words=request.bad_words,
        structured_outputs=None if params.guided is None else _constraint(params.guided),
        thinking_token_budget=request.thinking_token_budget,
        **values,
    )


def _constraint(guided: GuidedDecoding) -> dict[str, Any]:
    """The grammar as `structured_outputs`."""
    match guided.kind:
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            return {"json": guided.spec}
        case "choice":
            return {"choice": json.loads(guided.spec)}
        case kind:
            return {kind: guided.spec}
