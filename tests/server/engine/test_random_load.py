"""Random requests and aborts with few slots and little memory: outputs are correct and nothing leaks."""

import random
from dataclasses import dataclass

import pytest

from server.engine.compute import batch
from tests.server.engine.small_engine import Completion, SmallEngine
from tests.server.engine.tiny_models import greedy_outputs, random_prompts

pytestmark = pytest.mark.thorough


@dataclass
class _RandomLoad:
    """Random requests with known answers, some of them aborted at random times."""

    engine: SmallEngine
    known: list[tuple[list[int], list[int]]]
    rng: random.Random

    def run(self, num_requests: int) -> int:
        """Returns the number of finished requests."""
        wanted: dict[str, tuple[Completion, list[int]]] = {}
        aborted: set[str] = set()
        for i in range(num_requests):
            request_id = str(i)
            prompt, output = self._request()
            wanted[request_id] = (self.engine.add(request_id, prompt, max_tokens=len(output)), output)
            while self.engine.core.has_work and self.rng.random() < 0.7:
                self.engine.step()
            if self.rng.random() < 0.25:
                aborted_id = str(self.rng.randint(max(0, i - 20), i))
                self.engine.core.abort([aborted_id])
                aborted.add(aborted_id)
        self.engine.run()
        num_finished = 0
        for request_id, (completion, output) in wanted.items():
            if completion.finish_reason is None:
                assert request_id in aborted
                assert completion.token_ids == output[: len(completion.token_ids)]
            else:
                assert completion.token_ids == output
                num_finished += 1
        return num_finished

    def _request(self) -> tuple[list[int], list[int]]:
        """A prompt, sometimes with a part of its known output, and the rest of the output."""
        prompt, output = self.rng.choice(self.known)
        turn = self.rng.choice([0, 0, self.rng.randint(1, len(output) - 1)])
        rest = output[turn:]
        return prompt + output[:turn], rest[: self.rng.randint(1, len(rest))]


@pytest.mark.parametrize("prefix_tokens", [0, 120], ids=["no prefix cache", "prefix cache"])
def test_random_requests_and_aborts_on_little_memory(plain_llama, llama, prefix_tokens, monkeypatch):
    for name in ("_MIN_SHARED_TOKENS", "_MIN_SAVED_TOKENS"):
        monkeypatch.setattr(batch, name, 32)  # so that short prefixes are attended to once, too
    rng = random.Random(prefix_tokens)
    prompts = random_prompts(*(rng.randint(1, 90) for _ in range(24)))
    prompts += [p[:40] + q[:20] for p, q in zip(prompts[:8], prompts[8:16], strict=True)]
    known = list(zip(prompts, greedy_outputs(plain_llama, prompts, 36), strict=True))
    engine = SmallEngine(
        llama,
        num_slots=8,
        max_model_len=160,
        kv_cache_tokens=400,
        max_num_batched_tokens=48,
        prefix_tokens=prefix_tokens,
    )
    num_preemptions = _count_preemptions(engine)
    num_finished = _RandomLoad(engine, known, rng).run(300)
    assert num_finished > 150
    assert len(num_preemptions) > 10
    engine.assert_nothing_leaked()
    if engine.prefixes is not None:
        assert engine.prefixes.num_hit_tokens > 500
        assert engine.prefixes.num_tokens <= prefix_tokens
    engine.cache.forget_prefixes()
    assert engine.num_committed_bytes == 0


def _count_preemptions(engine: SmallEngine) -> list[str]:
    preempted: list[str] = []
    preempt = engine.scheduler._preempt

    def record(sequence):  # type: ignore[no-untyped-def]
        preempted.append(sequence.request_id)
        preempt(sequence)

    engine.scheduler._preempt = record  # type: ignore[method-assign]
    return preempted
