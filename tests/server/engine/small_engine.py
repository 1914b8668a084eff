"""Runs an engine core for a small model, built as in `server.engine.build`, with sizes from the test."""

from collections.abc import Sequence as Seq
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

from transformers import PreTrainedModel

from server.engine.base_core import PromptLimits
from server.engine.compute.batch import StepLogits
from server.engine.compute.packed_runner import PackedRunner
from server.engine.compute.sequential_runner import SequentialRunner
from server.engine.core import EngineCore
from server.engine.memory.cache_manager import CacheManager
from server.engine.memory.kv_cache import KVCache
from server.engine.memory.prefix_cache import PrefixCache
from server.engine.pending import PendingSequences
from server.engine.prompt_features import FeatureBuilder
from server.engine.sampling.guided import GuidedStates, read_tokenizer
from server.engine.sampling.sampler import Sampler
from server.engine.scheduler import Scheduler
from server.engine.sequence import Chunk
from server.engine.step_pace import StepPace
from server.engine.vision import image_encoder
from server.terms.types import (
    EngineOutput,
    EnginePrompt,
    EngineStats,
    Fault,
    FinishReason,
    PromptInputs,
    SamplingParams,
    TokenLogprob,
)
from tests.server.inline_executor import InlineExecutor

_MAX_STEPS = 20_000


@dataclass
class Completion:
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    fault: Fault = "engine"

    def take(self, output: EngineOutput) -> None:
        assert self.finish_reason is None, "output after the end"
        self.token_ids += output.token_ids
        self.finish_reason = output.finish_reason
        self.stop_token_id = output.stop_token_id
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self.num_cached_tokens += output.num_cached_tokens
        self.error, self.fault = output.error, output.fault


class SmallEngine:
    """Runs the steps of a real engine core, and collects the outputs of each request."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_slots: int = 8,
        max_model_len: int = 256,
        kv_cache_tokens: int | None = None,
        max_num_batched_tokens: int = 512,
        prefix_tokens: int = 0,
        eos_token_ids: tuple[int, ...] = (),
        tokenizer_path: Path = Path("nowhere"),
        sequential: bool = False,
        pace: StepPace | None = None,
        executor: Executor | None = None,
        trial_executor: Executor | None = None,
    ) -> None:
        """Without a `pace`, the times of steps have no effect, so each run computes the same chunks."""
        self.prefixes: PrefixCache | None = None
        self.num_slots = num_slots
        self.runner: PackedRunner | SequentialRunner
        kv_cache = None
        if sequential:
            self.runner = SequentialRunner(model)
        else:
            self.runner = PackedRunner(model)
            shapes = self.runner.probe()
            kv_cache = KVCache(
                shapes, num_slots=num_slots, slot_len=max_model_len, dtype=model.dtype, device=model.device
            )
            self.runner.use_cache(kv_cache)
            self.prefixes = PrefixCache(kv_cache.slots, max_tokens=prefix_tokens) if prefix_tokens else None
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        self.guided = GuidedStates(
            tokenizer=read_tokenizer(tokenizer_path, vocab_size=vocab_size, eos_token_ids=eos_token_ids),
            executor=executor or InlineExecutor(),
            trial_executor=trial_executor or executor or InlineExecutor(),
        )
        self.cache = CacheManager(
            num_slots=num_slots,
            max_tokens=kv_cache_tokens or num_slots * max_model_len,
            kv_cache=kv_cache,
            prefixes=self.prefixes,
        )
        self.scheduler = Scheduler(
            self.cache,
            max_num_batched_tokens=max_num_batched_tokens if self.runner.can_split_prompts else max_model_len,
            pace=pace,
        )
        limits = PromptLimits(min(max_model_len, self.cache.max_tokens), vocab_size)
        self.features = FeatureBuilder(model, image_encoder(model))
        self.core = EngineCore(
            self.runner,
            pending=PendingSequences(self.scheduler, limits=limits, guided=self.guided, features=self.features),
            scheduler=self.scheduler,
            sampler=Sampler(
                eos_token_ids=eos_token_ids,
                max_model_len=limits.max_model_len,
                seed=0,
                device=model.device,
                guided=self.guided,
            ),
        )
        self.completions: dict[str, Completion] = {}
        self.steps: list[dict[str, int]] = []
        """For each step: request id -> number of computed tokens, in the step's order."""
        self._computed = WeakSet()
        self._record_steps()

    @property
    def stats(self) -> EngineStats:
        return self.core.stats

    def add(self, request_id: str, prompt: list[int], inputs: PromptInputs | None = None, **params: Any) -> Completion:
        """Queues a request, which is greedy by default."""
        completion = self.completions[request_id] = Completion()
        sampling = SamplingParams(**({"temperature": 0.0, "max_tokens": 16} | params))
        for rejection in self.core.add([request_id], EnginePrompt(prompt, sampling, inputs)):
            completion.take(rejection)
        return completion

    def step(self) -> list[EngineOutput]:
        outputs = self.core.step()
        for output in outputs:
            self.completions[output.request_id].take(output)
        return outputs

    def run(self) -> None:
        """Runs steps until all requests have ended. Fails after too many steps."""
        for _ in range(_MAX_STEPS):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError(f"requests are still running after {_MAX_STEPS} steps")

    def complete(self, prompts: list[list[int]], **params: Any) -> list[Completion]:
        """Adds one request per prompt, and runs all requests."""
        first = len(self.completions)
        added = [self.add(str(first + i), prompt, **params) for i, prompt in enumerate(prompts)]
        self.run()
        return added

    def generate(self, prompts: list[list[int]], **params: Any) -> list[list[int]]:
        """The tokens of `complete`'s completions."""
        return [c.token_ids for c in self.complete(prompts, **params)]

    def _record_steps(self) -> None:
        compute = self.runner.step

        def step(chunks: Seq[Chunk]) -> StepLogits:
            self._computed.update(c.sequence for c in chunks)
            self.steps.append({c.sequence.request_id: c.num_tokens for c in chunks})
            return compute(chunks)

        self.runner.step = step  # type: ignore[method-assign]

    def assert_nothing_leaked(self) -> None:
        """Checks that the engine holds no request, slot, token, grammar or model cache any more."""
        self.guided.close()
        assert not self.core.has_work
        assert sorted(self.cache._free_slots) == list(range(self.num_slots))
        assert self.cache.num_held_tokens == 0
        assert not self.scheduler._by_id
        assert not self.guided._matchers
        assert self.guided._num_copied_chars == 0
        assert not any(grammar.num_users for grammar in self.guided._compiler._grammars.values())
        assert all(s.model_cache is None for s in self._computed)
