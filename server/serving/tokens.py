"""Answers /inference/v1/generate: tokens in, tokens out, for routers that render prompts themselves."""

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from msgspec import UNSET

from server import sse
from server.errors import RequestError
from server.protocol.completions import CompletionRequest
from server.protocol.logprobs import ChatLogprobs
from server.protocol.tokens import (
    AbortRequest,
    TokensCandidate,
    TokensChoice,
    TokensChunk,
    TokensLogprob,
    TokensLogprobs,
    TokensRequest,
    TokensResponse,
)
from server.renderers.prompts import PromptOrigin, TextOptions
from server.serving.concurrently import take_turns
from server.serving.failures import end_stream
from server.serving.generation import Generation, SequenceDelta
from server.serving.inference import Inference
from server.serving.logprobs import LogprobFormatter
from server.serving.models import unix_time
from server.serving.preparation import GenerationBuilder
from server.serving.request_context import RequestContext
from server.serving.streams import collect, generate
from server.serving.usage import UsageMeter, UsageReporting
from server.types import TokenLogprob


class TokensServing:
    """One per server; every method runs on the event loop."""

    def __init__(self, inference: Inference, builder: GenerationBuilder) -> None:
        self._inference = inference
        self._builder = builder
        self._running: defaultdict[str, set[_TokensResponse]] = defaultdict(set)
        """By id; clients choose ids, so several streams may have the same."""

    async def create(
        self, request: TokensRequest, context: RequestContext
    ) -> TokensResponse | AsyncGenerator[bytes, None]:
        """The response, or its events. Every fault of the request is found before the first event.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
            EngineError: the engine failed; in streams this is an event.
        """
        self._inference.models.check_generative("generate tokens")
        self._inference.models.check(request.model)
        if self._inference.config.tokens_only:
            _check_needs_no_text(request)
        room = self._inference.engine.info.max_model_len - len(request.token_ids)
        run_unless = self._inference.renderer.run_unless
        completion = await run_unless(context.is_small, request.to_completion, max_tokens=max(1, room))
        prompt = await self._inference.renderer.render_text_async(request.token_ids, TextOptions())
        prompt = replace(prompt, origin=_origin(request))
        generation = await self._builder.build(completion, [prompt], context, id_prefix="generate-tokens")
        response = _TokensResponse(self._inference, generation, request)
        return end_stream(self._stream(response)) if request.stream else await response.complete()

    async def abort(self, request: AbortRequest, context: RequestContext) -> bytes:
        """Ends streams: their last chunk has the finish reason `abort`; unknown ids are ignored."""
        ids = await self._inference.renderer.run_unless(context.is_small, frozenset, request.request_ids)
        for request_id in ids & self._running.keys():
            for response in self._running[request_id]:
                response.is_aborted = True
        return b""

    async def _stream(self, response: "_TokensResponse") -> AsyncGenerator[bytes, None]:
        self._running[response.id].add(response)
        try:
            async with aclosing(response.stream()) as events:
                async for event in events:
                    yield event
        finally:
            self._running[response.id].discard(response)
            if not self._running[response.id]:
                del self._running[response.id]


class _TokensResponse:
    """The bodies of one request's response."""

    def __init__(self, inference: Inference, generation: Generation, request: TokensRequest) -> None:
        completion = generation.request
        assert isinstance(completion, CompletionRequest)
        self.id = generation.request_id
        self.is_aborted = False
        self._inference = inference
        self._generation = generation
        self._completion = completion
        self._request = request
        self._logprobs = LogprobFormatter.from_request(inference, completion)
        self._meter = UsageMeter(generation, has_prompt_details=inference.config.enable_prompt_tokens_details)

    async def complete(self) -> TokensResponse:
        """The whole response."""
        deltas = await collect(self._inference, self._generation)
        choices = []
        async for delta in take_turns(deltas):
            self._meter.add(delta)
            choices.append(await self._choice(delta))
        prompt_logprobs = deltas[0].prompt_logprobs
        return TokensResponse(
            request_id=self.id,
            model=self._request.model or self._inference.models.default_name,
            created=unix_time(),
            usage=self._meter.total(),
            prompt_logprobs=None if prompt_logprobs is None else await self._logprobs.prompt(prompt_logprobs),
            prompt_token_ids=self._request.token_ids if self._request.return_token_ids else None,
            output_mode=self._request.output_mode,
            choices=choices,
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as events."""
        reporting = UsageReporting(self._completion.stream_options, self._inference.config)
        is_first = True
        async with aclosing(generate(self._inference, self._generation)) as deltas:
            async for delta in deltas:
                self._meter.add(delta)
                chunk = self._chunk([await self._choice(delta)])
                if is_first and self._request.return_token_ids:
                    chunk.prompt_token_ids = self._request.token_ids
                is_first = False
                if reporting.in_chunks:
                    chunk.usage = self._meter.of_choice(delta.choice)
                yield sse.encode_event(chunk)
                if self.is_aborted:
                    break
        if self.is_aborted:
            text = "" if self._request.output_mode == "text" else UNSET
            ended = range(self._generation.num_choices)
            yield sse.encode_event(
                self._chunk([TokensChoice(index=i, finish_reason="abort", token_ids=[], text=text) for i in ended])
            )
        if reporting.at_end:
            last = self._chunk([])
            last.usage = self._meter.total()
            yield sse.encode_event(last)

    def _chunk(self, choices: list[TokensChoice]) -> TokensChunk:
        return TokensChunk(request_id=self.id, output_mode=self._request.output_mode, choices=choices)

    async def _choice(self, delta: SequenceDelta) -> TokensChoice:
        return TokensChoice(
            index=delta.choice,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids,
            text=delta.text if self._request.output_mode == "text" else UNSET,
            logprobs=await self._show_logprobs(delta),
        )

    async def _show_logprobs(self, delta: SequenceDelta) -> TokensLogprobs | ChatLogprobs | None:
        if delta.logprobs is None:
            return None
        if self._request.output_mode == "text":
            return await self._logprobs.chat(delta.logprobs)
        most = self._completion.num_logprobs
        is_limited = most not in (None, -1) and not self._completion.logprob_token_ids
        return TokensLogprobs([_entry(entry, max(1, most or 0) if is_limited else None) for entry in delta.logprobs])


def _origin(request: TokensRequest) -> PromptOrigin:
    rendered_with = request.reasoning_parser_kwargs
    return PromptOrigin(
        template_variables={} if rendered_with is None else rendered_with.chat_template_kwargs,
        is_reasoning_over=bool(request.reasoning_ended),
    )


def _check_needs_no_text(request: TokensRequest) -> None:
    if request.sampling_params.stop:
        raise RequestError(
            "stop strings are not supported on a --tokens-only server; use stop_token_ids.",
            param="sampling_params.stop",
        )
    if request.output_mode != "tokens":
        raise RequestError(
            f"output_mode='{request.output_mode}' requires a tokenizer, which a --tokens-only server does not use.",
            param="output_mode",
        )


def _entry(entry: TokenLogprob, most: int | None) -> TokensLogprob:
    own = TokensCandidate(entry.token_id, entry.logprob, entry.rank)
    top = enumerate(entry.top, start=1)
    others = [TokensCandidate(token_id, lp, rank) for rank, (token_id, lp) in top if token_id != entry.token_id]
    return TokensLogprob(own.token_id, own.logprob, own.rank, [own, *others][:most])
