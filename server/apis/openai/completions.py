"""Answers /v1/completions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from server.generation.generation import Generation, GenerationBuilder, SequenceDelta
from server.generation.generation_request import CompletionRequest
from server.generation.logprobs import CompletionLogprobs, LogprobFormatter
from server.generation.sequences import UsageMeter, collect, generate
from server.operation.admission import RequestContext
from server.operation.models import Inference, unix_time
from server.terms.concurrency import take_turns
from server.terms.http_body.response_body import encode_event, end_stream
from server.text.renderers.prompts import RenderedPrompt, TextOptions, split_prompts


class CompletionServing:
    """Serves /v1/completions. A server has one such object. Every method runs on the event loop."""

    def __init__(self, inference: Inference, builder: GenerationBuilder) -> None:
        self._inference = inference
        self._builder = builder

    async def create(
        self, request: CompletionRequest, context: RequestContext
    ) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        """Generates the response, or a stream of events."""
        self._inference.models.check_generative("Completions", request.model)
        with context.times.rendering():
            bodies = await self._prepare(request, context)
        if request.prompt_embeds is not None:
            request.prompt_embeds = None  # frees up to a hundred megabytes
            context.lease.remove_bytes(context.lease.num_bytes)
        generation = bodies.generation
        self._builder.admit(generation)
        if request.echo and generation.num_choices > 1:
            context.is_small = False  # the response repeats the prompt for each choice
        if request.stream:
            return end_stream(bodies.stream())
        return await bodies.complete(await collect(self._inference, generation))

    async def _prepare(self, request: CompletionRequest, context: RequestContext) -> "CompletionBodies":
        """Renders the prompts in the pool, in one call. Long lists and embeddings take several calls."""
        renderer, prompts = self._inference.renderer, request.prompts
        options = TextOptions(
            add_special_tokens=request.add_special_tokens,
            truncate_prompt_tokens=request.truncate_prompt_tokens,
        )
        if len(split_prompts(prompts)) > 1:
            rendered = await renderer.render_prompts_async(prompts, options)
            return await renderer.pools.run(self._build, request, rendered, context)

        def build() -> CompletionBodies:
            return self._build(request, renderer.prompts.render_all(prompts, options), context)

        return await renderer.pools.run(build)

    def _build(
        self, request: CompletionRequest, prompts: list[RenderedPrompt], context: RequestContext
    ) -> "CompletionBodies":
        generation = self._builder.build(request, prompts, context, id_prefix="cmpl")
        return CompletionBodies(self._inference, generation, [self._echo_text(prompt, request) for prompt in prompts])

    def _echo_text(self, prompt: RenderedPrompt, request: CompletionRequest) -> str:
        """Returns the text to echo. Detokenizes a prompt that consists of token ids or was truncated."""
        if not request.echo:
            return ""
        if prompt.text is None or request.truncate_prompt_tokens is not None:
            return self._inference.renderer.detokenize(prompt.token_ids)
        return prompt.text


class CompletionBodies:
    """Writes the response of one request."""

    def __init__(self, inference: Inference, generation: Generation, echoes: Sequence[str]) -> None:
        """`echoes` has one text for each prompt, which is empty unless the request echoes its prompts."""
        request = generation.request
        assert isinstance(request, CompletionRequest)
        self._inference = inference
        self._model = inference.models.default_name
        self._request = request
        self.generation = generation
        self._echoes = echoes
        self._created = unix_time()
        self._has_begun = [False] * generation.num_choices
        self._logprobs = LogprobFormatter(inference, request)
        self._meter = UsageMeter(generation, inference.config.generation, counts_output=not request.is_echo_only)

    async def complete(self, deltas: Sequence[SequenceDelta]) -> dict[str, Any]:
        """Builds the complete response from one delta per choice."""
        choices = []
        async for delta in take_turns(deltas):
            self._meter.add(delta)
            choices.append(await self._choice(delta))
        return self._body(choices) | {
            "service_tier": None,
            "system_fingerprint": None,
            "usage": self._meter.total(),
            "kv_transfer_params": None,
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(generate(self._inference, self.generation)) as deltas:
            async for delta in deltas:
                self._meter.add(delta)
                chunk = self._body([await self._part(delta)])
                if (usage := self._meter.of_chunk(delta.choice)) is not None:
                    chunk["usage"] = usage
                yield encode_event(chunk)
        if self._meter.is_sent_at_end:
            yield encode_event(self._body([]) | {"usage": self._meter.total()})

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.generation.request_id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    async def _choice(self, delta: SequenceDelta) -> dict[str, Any]:
        choice, entries = await self._part(delta), delta.prompt_logprobs
        prompt_token_ids = choice.pop("prompt_token_ids", None)
        return choice | {
            "token_ids": choice.get("token_ids"),
            "prompt_logprobs": None if entries is None else await self._logprobs.prompt(entries),
            "prompt_token_ids": prompt_token_ids,
        }

    async def _part(self, delta: SequenceDelta) -> dict[str, Any]:
        """Returns the fields of a choice, or of its next part in a stream, with token ids on request.

        A choice's first part begins with the echoed prompt. If the request only echoes, nothing follows.
        """
        is_first, self._has_begun[delta.choice] = not self._has_begun[delta.choice], True
        if self._request.is_echo_only:
            delta = delta._replace(text="", token_ids=[], logprobs=None, finish_reason="length", stop_reason=None)
        echo = self._echoes[delta.choice // self._request.num_choices] if is_first else ""
        fields: dict[str, Any] = {
            "index": delta.choice,
            "text": echo + delta.text,
            "logprobs": await self._take_logprobs(delta, is_echo=is_first and bool(self._request.echo)),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            fields["token_ids"] = delta.token_ids
            if is_first:
                fields["prompt_token_ids"] = self._prompt_token_ids(delta)
        return fields

    async def _take_logprobs(self, delta: SequenceDelta, *, is_echo: bool) -> CompletionLogprobs | None:
        """Returns a delta's log-probabilities."""
        if self._request.logprobs is None:
            return None
        echoed = zip(self._prompt_token_ids(delta), delta.prompt_logprobs or (), strict=True) if is_echo else ()
        return await self._logprobs.completion(delta.choice, delta.logprobs or (), echoed)

    def _prompt_token_ids(self, delta: SequenceDelta) -> list[int]:
        return self.generation.prompt_of(delta.choice).token_ids
