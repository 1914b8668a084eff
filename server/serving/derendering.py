"""Answers the derender routes: chats and completions of the token ids that /inference/v1/generate returned.

The tokens take the way of the engine's: detokenizer, parsers and bodies are those of /v1/chat/completions and
/v1/completions. A stream has no state here: each chunk comes with the earlier tokens, which are read again.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import cast

import msgspec
from msgspec import UNSET, UnsetType

from server.errors import RequestError
from server.limits import LimitsConfig
from server.protocol.chat import ChatRequest
from server.protocol.chat_response import ChatResponse
from server.protocol.completions import CompletionRequest, CompletionResponse
from server.protocol.derender import (
    DerenderChatRequest,
    DerenderCompletionRequest,
    DerenderedChatChunk,
    DerenderedCompletionChunk,
    Generated,
    GeneratedChoice,
    GeneratedLogprob,
    StreamState,
)
from server.protocol.fields import INT32_MAX
from server.protocol.usage import Usage
from server.renderers.prompt_limits import check_token_ids
from server.renderers.prompts import RenderedPrompt
from server.serving.chat import ChatBodies
from server.serving.chat_run import ChatRun
from server.serving.completions import CompletionBodies
from server.serving.generation import Generation, SequenceDelta
from server.serving.guided import find_constraint
from server.serving.inference import Inference
from server.serving.output_parsing import OutputParsing
from server.serving.output_reader import OutputReader
from server.serving.reasoning import ModelReasoning
from server.serving.request_context import RequestContext
from server.serving.request_limits import RequestLimiter
from server.serving.streams import join_deltas
from server.types import EngineOutput, TokenLogprob

_TOKENS_PER_TURN = 256
"""Detokenizing and parsing them takes less than 10 ms of the event loop."""


class DerenderServing:
    """One per server; every method runs on the event loop."""

    def __init__(
        self, inference: Inference, parsing: OutputParsing, reasoning: ModelReasoning, limits: LimitsConfig
    ) -> None:
        self._inference = inference
        self._parsing = parsing
        self._reasoning = reasoning
        self._max_choices = limits.max_choices
        self._limiter = RequestLimiter(limits)

    async def chat(self, request: DerenderChatRequest, context: RequestContext) -> ChatResponse | DerenderedChatChunk:
        """The response of /v1/chat/completions, or one chunk of its stream.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
        """
        self._check_model(request.model, "Chat Completions Derender")
        generated = cast("Generated", request.generate_response or request.generate_chunk)
        run_unless = self._inference.renderer.run_unless
        await run_unless(context.is_small, self._check_bounds, [generated])
        if self._parsing.is_configured:
            _check_has_prompt(request)
        run = await run_unless(context.is_small, self._start_chat, request, generated, context)
        if request.stream:
            return await self._chat_chunk(request, generated, run)
        bodies = ChatBodies(self._inference, run, [run.request] * run.num_choices)
        deltas = await self._read_all(run.generation, generated.choices)
        response = await bodies.complete(await run.read_all(deltas))
        for choice, given in zip(response.choices, generated.choices, strict=True):
            choice.index = given.index
        response.usage = _with_prompt_tokens(response.usage, request.prompt_tokens or 0)
        response.prompt_token_ids = response.prompt_token_ids or None
        response.prompt_logprobs = generated.prompt_logprobs
        response.kv_transfer_params = generated.kv_transfer_params
        response.metrics = generated.metrics or UNSET
        return response

    async def completions(
        self, request: DerenderCompletionRequest, context: RequestContext
    ) -> CompletionResponse | DerenderedCompletionChunk:
        """The response of /v1/completions, or one chunk of its stream.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
        """
        self._check_model(request.model, "Completions Derender")
        responses = request.generate_responses or [cast("Generated", request.generate_chunk)]
        run_unless = self._inference.renderer.run_unless
        await run_unless(context.is_small, self._check_bounds, responses)
        generation = await run_unless(context.is_small, self._start_completion, request, responses, context)
        if request.stream:
            return await self._completion_chunk(request, responses[0], generation)
        choices = [choice for generated in responses for choice in generated.choices]
        bodies = CompletionBodies(self._inference, generation, [""] * len(choices))
        response = await bodies.complete(await self._read_all(generation, choices))
        prompt_logprobs = [each.prompt_logprobs for each in responses for _ in each.choices]
        for shown, logprobs in zip(response.choices, prompt_logprobs, strict=True):
            shown.prompt_logprobs = logprobs
            shown.prompt_token_ids = shown.prompt_token_ids or None
        response.usage = _with_prompt_tokens(response.usage, sum(cast("list[int]", request.prompt_tokens or [])))
        first = responses[0]
        if all(each.kv_transfer_params == first.kv_transfer_params for each in responses):
            response.kv_transfer_params = first.kv_transfer_params
        response.metrics = (first.metrics if len(responses) == 1 else None) or UNSET
        return response

    async def _chat_chunk(
        self, request: DerenderChatRequest, generated: Generated, run: ChatRun
    ) -> DerenderedChatChunk:
        state = request.stream_state or StreamState()
        readers = run.create_readers(is_whole=False)
        reader = OutputReader(self._inference.renderer, run.generation, 0)
        bodies = ChatBodies(self._inference, run, [run.request])
        for output in _outputs(state.output_token_ids):
            run.read(reader.read(output), readers)
            await asyncio.sleep(0)
        chunk = bodies.create_chunk([])
        for given in generated.choices:
            delta = run.read(await self._read(reader, run.generation, given), readers)
            chunk = await bodies.chunk(delta, is_opening=not state.role_sent)
            chunk.choices[0].index = given.index
        chunk.usage = _usage(generated, request.prompt_tokens)
        chunk.metrics = generated.metrics or UNSET
        return DerenderedChatChunk(chunk, _advance(state, generated))

    async def _completion_chunk(
        self, request: DerenderCompletionRequest, generated: Generated, generation: Generation
    ) -> DerenderedCompletionChunk:
        state = request.stream_state or StreamState()
        reader = OutputReader(self._inference.renderer, generation, 0)
        bodies = CompletionBodies(self._inference, generation, [""], text_offset=state.logprob_text_offset)
        for output in _outputs(state.output_token_ids):
            reader.read(output)
            await asyncio.sleep(0)
        chunk = bodies.create_chunk([])
        advanced = _advance(state, generated)
        for given in generated.choices:
            chunk = await bodies.chunk(await self._read(reader, generation, given))
            (shown,) = chunk.choices
            shown.index = given.index
            if state.output_token_ids or not shown.prompt_token_ids:
                shown.prompt_token_ids = UNSET
            if shown.logprobs is not None:
                advanced.logprob_text_offset += sum(map(len, shown.logprobs.tokens))
        chunk.usage = _usage(generated, cast("int | None", request.prompt_tokens))
        chunk.metrics = generated.metrics or UNSET
        return DerenderedCompletionChunk(chunk, advanced)

    def _start_chat(self, request: DerenderChatRequest, generated: Generated, context: RequestContext) -> ChatRun:
        """A run of the given choices, each with a prompt of its own."""
        chat = request.chat_request or ChatRequest(messages=[{"role": "user", "content": ""}])
        self._limiter.check(chat)
        self._parsing.check(chat)
        has_logprobs = any(choice.logprobs is not None for choice in generated.choices)
        chat = msgspec.structs.replace(
            chat,
            model=request.model,
            n=1,
            logprobs=has_logprobs,
            top_logprobs=(chat.top_logprobs if chat.logprobs else -1) if has_logprobs else 0,
            skip_special_tokens=chat.skip_special_tokens and not self._parsing.keeps_special_tokens(chat),
        )
        prompt = self._prompt(request.prompt_token_ids, generated)
        has_grammar = (find_constraint(chat) or self._parsing.find_constraint(chat)) is not None
        reasoning = self._reasoning.of_prompt(chat, prompt, has_grammar=has_grammar)
        if request.stream:
            self._check_stream(prompt, generated, request.stream_state)
        size = _num_choices(generated, is_stream=request.stream)
        generation = Generation(
            request=chat,
            request_id=generated.request_id,
            prompts=[prompt] * size,
            params=(),
            reasoning=[reasoning] * size,
            context=context,
        )
        return ChatRun(self._inference, generation, self._parsing)

    def _start_completion(
        self, request: DerenderCompletionRequest, responses: Sequence[Generated], context: RequestContext
    ) -> Generation:
        """The generation of the given choices, each with a prompt of its own."""
        completion = request.completion_request or CompletionRequest(prompt=[0])
        self._limiter.check(completion)
        has_logprobs = any(choice.logprobs is not None for each in responses for choice in each.choices)
        asked = -1 if completion.logprobs is None else completion.logprobs
        completion = msgspec.structs.replace(
            completion, model=request.model, n=1, echo=False, logprobs=asked if has_logprobs else None
        )
        given = [request.prompt_token_ids] if request.stream else request.prompt_token_ids or [None] * len(responses)
        prompts = [
            prompt
            for token_ids, generated in zip(given, responses, strict=True)
            for prompt in [self._prompt(cast("list[int] | None", token_ids), generated)]
            * _num_choices(generated, is_stream=request.stream)
        ]
        if request.stream:
            self._check_stream(prompts[0], responses[0], request.stream_state)
        return Generation(
            request=completion,
            request_id=responses[0].request_id,
            prompts=prompts,
            params=(),
            reasoning=[None] * len(prompts),
            context=context,
        )

    def _prompt(self, token_ids: list[int] | None, generated: Generated) -> RenderedPrompt:
        found = generated.prompt_token_ids or [] if token_ids is None else token_ids
        self._check_tokens("prompt_token_ids", found)
        return RenderedPrompt(found, None)

    async def _read_all(self, generation: Generation, choices: Sequence[GeneratedChoice]) -> list[SequenceDelta]:
        """Each whole choice as one delta."""
        deltas = []
        for index, choice in enumerate(choices):
            if not choice.token_ids:
                raise RequestError(f"choice {choice.index} has empty or null token_ids", param="token_ids")
            choice.finish_reason = choice.finish_reason or "stop"
            reader = OutputReader(self._inference.renderer, generation, index)
            deltas.append(await self._read(reader, generation, choice))
        return deltas

    async def _read(self, reader: OutputReader, generation: Generation, choice: GeneratedChoice) -> SequenceDelta:
        """The delta of a choice's tokens; why they end is given, whatever their text."""
        token_ids = choice.token_ids or []
        parts = []
        for output in _outputs(token_ids, choice, self._stop_token(generation, choice)):
            parts.append(reader.read(output))
            if parts[-1].finish_reason is not None:
                break
            await asyncio.sleep(0)
        logprobs = choice.logprobs
        return join_deltas(parts)._replace(
            token_ids=token_ids,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            logprobs=None if logprobs is None else [_logprob(entry) for entry in logprobs.content or ()],
        )

    def _stop_token(self, generation: Generation, choice: GeneratedChoice) -> int | None:
        """The token that has ended the output, whose text is not shown."""
        if choice.finish_reason != "stop" or not choice.token_ids:
            return None
        eos = None if generation.request.ignore_eos else self._inference.renderer.eos_token_id
        expected = eos if choice.stop_reason is None else choice.stop_reason
        return choice.token_ids[-1] if choice.token_ids[-1] == expected else None

    def _check_model(self, name: str | None, api_name: str) -> None:
        self._inference.models.check_generative(api_name)
        self._inference.models.check(name)

    def _check_bounds(self, responses: Sequence[Generated]) -> None:
        most = self._max_choices
        if len(responses) > most:
            raise RequestError(
                f"generate_responses count ({len(responses)}) exceeds server maximum ({most}, VLLM_MAX_N_SEQUENCES).",
                param="generate_responses",
            )
        for generated in responses:
            if len(generated.choices) > most:
                raise RequestError(
                    f"choices count ({len(generated.choices)}) in response '{generated.request_id}' exceeds server "
                    f"maximum ({most}, VLLM_MAX_N_SEQUENCES).",
                    param="choices",
                )
            self._check_length("prompt_logprobs", len(generated.prompt_logprobs or ()))
            for choice in generated.choices:
                self._check_choice(choice)

    def _check_choice(self, choice: GeneratedChoice) -> None:
        self._check_tokens("token_ids", choice.token_ids or [])
        entries = (choice.logprobs and choice.logprobs.content) or []
        self._check_length("logprobs.content", len(entries))
        candidates: list[int] = []
        most = self._inference.config.max_logprobs
        for entry in entries:
            if 0 <= most < len(entry.top_logprobs):
                raise RequestError(
                    f"top_logprobs count ({len(entry.top_logprobs)}) in choice {choice.index} exceeds max_logprobs "
                    f"({most}).",
                    param="top_logprobs",
                )
            candidates += (entry.token_id, *(each.token_id for each in entry.top_logprobs))
        check_token_ids(candidates, vocab_size=self._inference.renderer.vocab_size, param="logprobs")

    def _check_tokens(self, name: str, token_ids: list[int]) -> None:
        self._check_length(name, len(token_ids))
        check_token_ids(token_ids, vocab_size=self._inference.renderer.vocab_size, param=name)

    def _check_length(self, name: str, length: int) -> None:
        most = self._inference.engine.info.max_model_len
        if length > most:
            raise RequestError(f"{name} length ({length}) exceeds max_model_len ({most}).", param=name)

    def _check_stream(self, prompt: RenderedPrompt, generated: Generated, state: StreamState | None) -> None:
        if len(generated.choices) > 1:
            raise RequestError(
                f"generate_chunk may have at most one choice (got {len(generated.choices)}).", param="generate_chunk"
            )
        prior = [] if state is None else state.output_token_ids
        self._check_tokens("output_token_ids", prior)
        num_prompt, num_new = len(prompt.token_ids), sum(len(each.token_ids or ()) for each in generated.choices)
        most = self._inference.engine.info.max_model_len
        if num_prompt + len(prior) + num_new > most:
            raise RequestError(
                f"prompt_token_ids length ({num_prompt}) plus output_token_ids length ({len(prior)}) plus delta "
                f"({num_new}) exceeds max_model_len ({most}).",
                param="stream_state",
            )


def _check_has_prompt(request: DerenderChatRequest) -> None:
    """Raises RequestError if the parsers cannot know what the model was asked."""
    if request.chat_request is None:
        raise RequestError(
            "chat_request is required on a server with a tool or reasoning parser: without it the parser's markers "
            "would be content.",
            param="chat_request",
        )
    if request.stream and request.prompt_token_ids is None:
        raise RequestError(
            "prompt_token_ids is required on a server with a tool or reasoning parser: the prompt may end within "
            "the reasoning.",
            param="prompt_token_ids",
        )


def _num_choices(generated: Generated, *, is_stream: bool) -> int:
    """How many choices are read: at least one, to which a chunk of a stream may add nothing but the usage."""
    if not generated.choices and not is_stream:
        raise RequestError("`choices` must not be empty.", param="choices")
    return 1 if is_stream else len(generated.choices)


def _outputs(
    token_ids: list[int], choice: GeneratedChoice | None = None, stop_token_id: int | None = None
) -> Iterator[EngineOutput]:
    """The tokens as outputs of an engine, each small enough for one turn of the event loop.

    The last one ends the sequence as the choice says; without tokens it is the only one.
    """
    finish_reason = None if choice is None else choice.finish_reason
    for start in range(0, max(len(token_ids), 1), _TOKENS_PER_TURN):
        end = start + _TOKENS_PER_TURN
        if end < len(token_ids):
            yield EngineOutput("", token_ids[start:end])
        else:
            yield EngineOutput("", token_ids[start:], finish_reason, stop_token_id)


def _logprob(entry: GeneratedLogprob) -> TokenLogprob:
    """The candidates by rank; generate's first one is the token itself."""
    top = sorted(entry.top_logprobs, key=lambda each: INT32_MAX if each.rank is None else each.rank)
    return TokenLogprob(entry.token_id, entry.logprob, entry.rank or 0, [(each.token_id, each.logprob) for each in top])


def _advance(state: StreamState, generated: Generated) -> StreamState:
    """The state after the chunk."""
    new = [token_id for choice in generated.choices for token_id in choice.token_ids or ()]
    return StreamState(
        output_token_ids=state.output_token_ids + new,
        role_sent=state.role_sent or bool(generated.choices),
        logprob_text_offset=state.logprob_text_offset,
    )


def _usage(generated: Generated, num_prompt_tokens: int | None) -> Usage | UnsetType:
    usage = generated.usage
    if usage is None:
        return UNSET
    if num_prompt_tokens is None:
        num_prompt_tokens = usage.prompt_tokens or 0
    num_tokens = usage.completion_tokens or 0
    return Usage(
        prompt_tokens=num_prompt_tokens, completion_tokens=num_tokens, total_tokens=num_prompt_tokens + num_tokens
    )


def _with_prompt_tokens(usage: Usage, num_prompt_tokens: int) -> Usage:
    return msgspec.structs.replace(
        usage, prompt_tokens=num_prompt_tokens, total_tokens=num_prompt_tokens + usage.completion_tokens
    )
