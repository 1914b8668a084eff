"""Beam search as in vLLM: each step computes the likely next tokens of every beam, and the best go on.

It needs no code in the engine: each beam of a step is a request for one token, whose prompt is the original
one followed by the beam's tokens. The prefix cache has all of them but the last block.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from heapq import nlargest
from itertools import chain
from operator import attrgetter
from time import perf_counter
from typing import NamedTuple

import msgspec

from server.generation.completion_request import CompletionRequest
from server.generation.generation import Generation, SequenceDelta
from server.operation.concurrently import run_concurrently, take_turns
from server.operation.inference import Inference
from server.operation.request_context import RequestContext
from server.types import TokenLogprob


class _Beam(NamedTuple):
    """A beginning of the output that may become a choice."""

    token_ids: list[int]
    """The prompt's tokens and the generated ones."""
    logprob: float
    """Sum over the generated tokens, including one that ended the beam and is not in `token_ids`."""
    logprobs: list[TokenLogprob]
    """Those of the generated tokens."""
    is_ended: bool = False


class _Candidate(NamedTuple):
    """A beam and a token that may continue it."""

    beam: _Beam
    token: TokenLogprob
    logprob: float
    """The beam's sum with this token."""


RunSequences = Callable[[Inference, Generation, str], AsyncGenerator[SequenceDelta, None]]
"""Computes the sequences of a step (`server.generation.sequences.run_sequences`)."""


async def run_searches(
    inference: Inference, generation: Generation, engine_id: str, run_sequences: RunSequences
) -> AsyncGenerator[SequenceDelta, None]:
    """Searches for all prompts; yields each choice as one delta, the best one of a prompt first.

    Raises:
        EngineError: the engine died or failed a step.
    """
    searches = [_BeamSearch(inference, generation, run_sequences, index) for index in range(len(generation.prompts))]
    found = await run_concurrently(each.run(f"{engine_id}-{index}") for index, each in enumerate(searches))
    async for delta in take_turns(chain.from_iterable(found)):
        yield delta


class _BeamSearch:
    """The search for one prompt; runs on the event loop."""

    def __init__(
        self, inference: Inference, generation: Generation, run_sequences: RunSequences, prompt_index: int
    ) -> None:
        request = generation.request
        self._run_sequences = run_sequences
        self._inference = inference
        self._generation = generation
        self._request = request
        self._width = request.num_choices
        self._first_choice = prompt_index * self._width
        self._prompt = generation.prompts[prompt_index]
        self._eos_token_id = inference.renderer.eos_token_id
        self._max_tokens = generation.params[prompt_index].max_tokens
        self._step_params = msgspec.structs.replace(generation.params[prompt_index], max_tokens=1)
        self._step_request = CompletionRequest(prompt=self._prompt.token_ids, max_tokens=1)  # type: ignore[arg-type]
        self._later_context = RequestContext(times=generation.context.times)

    async def run(self, engine_id: str) -> list[SequenceDelta]:
        """The choices, each as one delta."""
        beams = await self._search(engine_id)
        return [await self._delta(self._first_choice + position, beam) for position, beam in enumerate(beams)]

    async def _search(self, engine_id: str) -> list[_Beam]:
        begin_s = perf_counter()
        beams = [_Beam(self._prompt.token_ids, 0.0, [])]
        ended: list[_Beam] = []
        context = self._generation.context
        for step in range(self._max_tokens):
            found = await self._compute_step(beams, f"{engine_id}-{step}", context)
            candidates = [each for beam, top in zip(beams, found, strict=True) for each in _candidates(beam, top)]
            ended += [self._end(each) for each in candidates if self._is_end(each.token.token_id)]
            ended = nlargest(self._width, ended, key=self._score)  # no worse one can become a choice
            going_on = (each for each in candidates if not self._is_end(each.token.token_id))
            beams = [self._extend(each) for each in nlargest(self._width, going_on, key=attrgetter("logprob"))]
            if step == 0:
                begin_s = perf_counter()
            context = replace(self._later_context, arrival_s=perf_counter())
        self._generation.context.times.record_decode(perf_counter() - begin_s)
        return nlargest(self._width, ended + beams, key=self._score)

    async def _compute_step(
        self, beams: list[_Beam], engine_id: str, context: RequestContext
    ) -> list[list[tuple[int, float]]]:
        """The most likely next tokens of each beam; the first failure ends the requests of all."""
        step = replace(
            self._generation,
            request=self._step_request,
            prompts=[replace(self._prompt, token_ids=beam.token_ids, text=None) for beam in beams],
            params=[self._step_params] * len(beams),
            reasoning=[None] * len(beams),
            context=context,
        )
        found: list[list[tuple[int, float]]] = [[]] * len(beams)
        async with aclosing(self._run_sequences(self._inference, step, engine_id)) as deltas:
            async for delta in deltas:
                assert delta.logprobs, "the engine sent no log-probabilities"
                found[delta.choice] = delta.logprobs[0].top
        return found

    def _is_end(self, token_id: int) -> bool:
        """Only the tokenizer's end-of-sequence token ends a beam."""
        return token_id == self._eos_token_id and not self._step_params.ignore_eos

    def _extend(self, candidate: _Candidate) -> _Beam:
        beam, token, logprob = candidate
        logprobs = beam.logprobs if self._request.num_logprobs is None else [*beam.logprobs, token]
        return _Beam([*beam.token_ids, token.token_id], logprob, logprobs)

    def _end(self, candidate: _Candidate) -> _Beam:
        if self._request.include_stop_str_in_output:
            return self._extend(candidate)._replace(is_ended=True)
        return candidate.beam._replace(logprob=candidate.logprob, is_ended=True)

    def _score(self, beam: _Beam) -> float:
        """The prompt's tokens count for the length; the end-of-sequence token does not."""
        length = len(beam.token_ids) - (beam.token_ids[-1] == self._eos_token_id)
        score: float = beam.logprob / max(length, 1) ** self._request.length_penalty
        return score

    async def _delta(self, choice: int, beam: _Beam) -> SequenceDelta:
        token_ids = beam.token_ids[len(self._prompt.token_ids) :]
        shown_ids = token_ids[:-1] if token_ids and self._is_end(token_ids[-1]) else token_ids
        renderer = self._inference.renderer
        text = await renderer.run_in_pool(
            renderer.tokenizer.decode, shown_ids, skip_special_tokens=self._request.skip_special_tokens
        )
        return SequenceDelta(
            choice=choice,
            text=text,
            token_ids=token_ids,
            logprobs=None if self._request.num_logprobs is None else beam.logprobs,
            finish_reason="stop" if beam.is_ended else "length",
            stop_reason=self._eos_token_id if beam.is_ended else None,
        )


def _candidates(beam: _Beam, top: list[tuple[int, float]]) -> list[_Candidate]:
    return [
        _Candidate(beam, TokenLogprob(token_id, logprob, rank, top), beam.logprob + logprob)
        for rank, (token_id, logprob) in enumerate(top, start=1)
    ]
