"""The times of earlier steps limit the number of prompt tokens beside decoding sequences."""

import pytest
from transformers import PreTrainedModel

from server.engine.sequence import Chunk, Sequence
from server.engine.step_pace import StepPace
from server.terms.types import SamplingParams
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import greedy_outputs, random_prompts

pytestmark = pytest.mark.thorough


class _Steps:
    """A pace, and a clock that the test sets."""

    def __init__(self) -> None:
        self._now = 0.0
        self.pace = StepPace(clock=lambda: self._now)

    def take(self, seconds: float, *, num_decodes: int, num_prompt_tokens: int = 0) -> None:
        """Lets the pace measure a step of this duration."""
        decoding = Sequence("decoding", [1, 2], SamplingParams(max_tokens=1))
        decoding.num_computed_tokens = 1
        chunks = [Chunk(decoding, 1)] * num_decodes
        if num_prompt_tokens:
            prompt = Sequence("prompt", [1] * num_prompt_tokens, SamplingParams(max_tokens=1))
            chunks.append(Chunk(prompt, num_prompt_tokens))
        with self.pace.measured(chunks):
            self._now += seconds

    def limit(self, *, num_decodes: int) -> int:
        """The most prompt tokens that a step may have if one prompt of one token waits."""
        return self.pace.max_prompt_tokens(num_decodes, [1])


@pytest.mark.parametrize(("token_s", "limit"), [(0.002, 10000), (0.02, 1000), (0.5, 512)], ids=str)
@pytest.mark.parametrize("num_decodes", [0, 3], ids=["alone", "beside fewer sequences"])
def test_prompts_for_which_most_sequences_wait_take_twenty_seconds_or_few_tokens(num_decodes, token_s, limit):
    steps = _Steps()
    steps.take(0.020, num_decodes=max(1, num_decodes))
    assert steps.pace.max_prompt_tokens(num_decodes, [1000] * 4) == 512
    steps.take(0.020 + 100 * token_s, num_decodes=num_decodes, num_prompt_tokens=100)
    assert steps.pace.max_prompt_tokens(num_decodes, [1000] * 4) == pytest.approx(limit, abs=1)
    assert num_decodes == 0 or steps.pace.max_prompt_tokens(num_decodes, [100] * num_decodes) <= 75


def test_prompts_beside_sequences_are_limited_as_those_alone():
    steps = _Steps()
    steps.take(0.020, num_decodes=4)
    steps.take(0.020 + 100 * 0.020, num_decodes=4, num_prompt_tokens=100)
    assert steps.pace.max_prompt_tokens(4, [2000]) == 500
    assert steps.pace.max_prompt_tokens(4, [8000] * 4) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize(("taken", "limits"), [
    pytest.param([], {8: 0}, id="the first step beside prompts is measured without them"),
    pytest.param([(0.02, 8, 0)], {9: 32, 16: 0}, id="then a few tokens are tried"),
    pytest.param([(0.020, 8, 0), (0.020 + 32 * 0.0002, 8, 32)], {8: 100}, id="prompts double a step's time"),
    pytest.param(
        [*[(seconds, 4, 0) for seconds in (0.020, 0.020, 3.0)], *[(s, 4, 50) for s in (0.040, 0.040, 3.0)]],
        {4: 50},
        id="one slow step changes no limit",
    ),
    pytest.param(
        [(0.020, 1, 0), *[(0.020 + 100 * 0.0001, 1, 100)] * 5], {1: 200}, id="the limit follows the cost of a token"
    ),
    pytest.param(
        [(0.020, 1, 0), *[(0.020 + 100 * token_s, 1, 100) for token_s in [0.0001] * 5 + [0.0004] * 3]],
        {1: 50},
        id="also when it rises",
    ),
])  # fmt: skip
def test_the_limit_follows_from_the_steps_so_far(taken, limits):
    """`taken` has the seconds, decoding sequences and prompt tokens of each step."""
    steps = _Steps()
    for seconds, num_decodes, num_prompt_tokens in taken:
        steps.take(seconds, num_decodes=num_decodes, num_prompt_tokens=num_prompt_tokens)
    found = {num_decodes: steps.limit(num_decodes=num_decodes) for num_decodes in limits}
    assert found == pytest.approx(limits, abs=1)


@pytest.mark.parametrize(
    ("prompt_lens", "limit"), [([10], 32), ([128], 32), ([400], 100), ([400, 400], 200), ([8000], 512)], ids=str
)
def test_expensive_prompts_still_make_progress(prompt_lens, limit):
    steps = _Steps()
    steps.take(0.001, num_decodes=2)
    steps.take(5.0, num_decodes=2, num_prompt_tokens=32)
    assert steps.pace.max_prompt_tokens(2, prompt_lens) == limit


def test_prompts_that_cost_nothing_are_not_limited():
    steps = _Steps()
    steps.take(0.020, num_decodes=1)
    steps.take(0.019, num_decodes=1, num_prompt_tokens=32)
    assert steps.limit(num_decodes=1) > 1_000_000


def test_a_long_prompt_lets_all_others_generate_between_its_chunks(plain_llama, llama):
    engine = _engine(llama, token_s=0.0002, max_model_len=512)
    prompts = random_prompts(3, 4, 5, 400)
    short = [engine.add(str(i), prompt, max_tokens=40) for i, prompt in enumerate(prompts[:3])]
    for _ in range(3):
        engine.step()
    long = engine.add("long", prompts[3], max_tokens=2)
    while not long.token_ids:
        before = [len(c.token_ids) for c in short]
        engine.step()
        assert [len(c.token_ids) for c in short] == [n + 1 for n in before]
    engine.run()
    chunks = [step["long"] for step in engine.steps if "long" in step]
    assert chunks == pytest.approx([100, 103, 197, 1], abs=2)
    expected = greedy_outputs(plain_llama, prompts[:3], 40) + greedy_outputs(plain_llama, prompts[3:], 2)
    assert [c.token_ids for c in (*short, long)] == expected


def test_short_prompts_within_the_limit_share_a_step(llama):
    engine = _engine(llama, token_s=0.001)
    decoding = _decode(engine, 5)
    engine.add("measured", random_prompts(30)[0], max_tokens=1)
    engine.step()
    for name in "abcde":
        engine.add(name, random_prompts(10)[0], max_tokens=1)
    engine.step()
    assert engine.steps[-1] == {**decoding, "a": 10, "b": 10, "c": 10}


def test_a_prompt_is_computed_as_a_whole_if_half_of_it_is_within_the_limit(llama):
    engine = _engine(llama, token_s=1.0)
    decoding = _decode(engine, 2)
    for name, prompt in zip(("short", "long"), random_prompts(63, 70), strict=True):
        engine.add(name, prompt, max_tokens=1)
    engine.run()
    beside = [{i: n for i, n in step.items() if i not in decoding} for step in engine.steps]
    assert [step for step in beside if step] == [{"short": 63}, {"long": 32}, {"long": 38}]


def test_requests_without_a_free_slot_do_not_count_as_waiting(llama):
    engine = _engine(llama, token_s=1.0, num_slots=2)
    decoding = _decode(engine, 1)
    for name, prompt in zip("abc", random_prompts(100, 70, 70), strict=True):
        engine.add(name, prompt, max_tokens=1)
    engine.step()
    assert engine.steps[-1] == {**decoding, "a": 32}


def _engine(model: PreTrainedModel, *, token_s: float, **sizes: int) -> SmallEngine:
    """An engine whose steps take 20 ms plus `token_s` for each token, by a simulated clock."""

    def clock() -> float:
        return sum(0.02 + token_s * sum(step.values()) for step in engine.steps)

    engine = SmallEngine(model, pace=StepPace(clock), **sizes)
    return engine


def _decode(engine: SmallEngine, num_sequences: int) -> dict[str, int]:
    """Starts sequences, and returns the measured step that decodes them."""
    for i in range(num_sequences):
        engine.add(f"decoding {i}", random_prompts(10)[0], max_tokens=100)
    for _ in range(2):
        engine.step()
    assert engine.steps[-1] == {f"decoding {i}": 1 for i in range(num_sequences)}
    return engine.steps[-1]
