"""Sleeping engines: what happens to requests, to the weights and to the cache."""

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from server.engine.messages import Done, ResetPrefixCache, Sleep, WakeUp
from server.errors import EngineStartError
from server.lora_config import LoraConfig
from tests.server.engine.peft_adapters import adapted_outputs, save_adapter
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import greedy_outputs, random_prompts

_PROMPTS = random_prompts(60, 7, 12)


@pytest.fixture
def engine(plain_llama: PreTrainedModel) -> SmallEngine:
    return SmallEngine(
        copy.deepcopy(plain_llama),
        prefix_tokens=512,
        reload=lambda: copy.deepcopy(plain_llama),
        lora=LoraConfig(enable_lora=True),
    )


def _num_weights(engine: SmallEngine) -> int:
    return sum(parameter.numel() for parameter in engine.runner._model.parameters())


def _sleep(engine: SmallEngine, level: int, mode: str = "abort") -> list[Done]:
    for output in engine.core.execute(Sleep(1, level, mode)):  # type: ignore[arg-type]
        engine.completions[output.request_id].take(output)
    return engine.core.take_done()


def _wake_up(engine: SmallEngine, *tags: str) -> Done:
    assert engine.core.execute(WakeUp(2, tags or None)) == []
    (done,) = engine.core.take_done()
    return done


@pytest.mark.parametrize("level", [1, 2])
def test_weights_are_freed_and_read_again(engine: SmallEngine, plain_llama: PreTrainedModel, level: int) -> None:
    expected = greedy_outputs(plain_llama, _PROMPTS, 16)
    assert engine.generate(_PROMPTS) == expected
    assert _sleep(engine, level) == [Done(1)]
    assert _num_weights(engine) == 0
    assert not engine.core.do_idle_work()
    late = [engine.add(f"late-{i}", prompt) for i, prompt in enumerate(_PROMPTS)]
    assert not engine.core.has_work
    assert _wake_up(engine) == Done(2)
    engine.run()
    assert [completion.token_ids for completion in late] == expected
    assert [completion.num_cached_tokens for completion in late] == [0, 0, 0]


def test_level_zero_only_pauses(engine: SmallEngine, plain_llama: PreTrainedModel) -> None:
    num_weights = _num_weights(engine)
    assert _sleep(engine, 0) == [Done(1)]
    queued = engine.add("queued", _PROMPTS[1])
    assert not engine.core.has_work
    assert _num_weights(engine) == num_weights
    assert _wake_up(engine, "scheduling") == Done(2)
    engine.run()
    assert queued.token_ids == greedy_outputs(plain_llama, _PROMPTS[1:2], 16)[0]


def test_the_mode_abort_ends_requests(engine: SmallEngine) -> None:
    running = engine.add("running", _PROMPTS[1])
    engine.step()
    waiting = engine.add("waiting", _PROMPTS[2])
    assert _sleep(engine, 1) == [Done(1)]
    assert (running.finish_reason, waiting.finish_reason) == ("abort", "abort")
    _wake_up(engine)
    engine.assert_nothing_leaked()


def test_the_mode_keep_continues_requests(engine: SmallEngine, plain_llama: PreTrainedModel) -> None:
    kept = [engine.add(str(i), prompt) for i, prompt in enumerate(_PROMPTS)]
    for _ in range(4):
        engine.step()
    assert _sleep(engine, 1, "keep") == [Done(1)]
    assert not engine.core.has_work
    assert _wake_up(engine) == Done(2)
    engine.run()
    assert [completion.token_ids for completion in kept] == greedy_outputs(plain_llama, _PROMPTS, 16)
    engine.assert_nothing_leaked()


def test_the_mode_wait_finishes_running_requests(engine: SmallEngine) -> None:
    running = engine.add("running", _PROMPTS[1])
    engine.step()
    assert _sleep(engine, 1, "wait") == []
    late = engine.add("late", _PROMPTS[2])
    while engine.core.has_work:
        engine.step()
    assert running.finish_reason == "length"
    assert late.token_ids == []
    assert engine.core.take_done() == [Done(1)]
    assert _num_weights(engine) == 0
    assert _wake_up(engine) == Done(2)
    engine.run()
    assert late.finish_reason == "length"


def test_waking_up_cancels_a_sleep_that_waits(engine: SmallEngine) -> None:
    engine.add("running", _PROMPTS[1])
    engine.step()
    _sleep(engine, 1, "wait")
    engine.core.execute(WakeUp(2, None))
    cancelled, done = engine.core.take_done()
    assert (cancelled.command_id, cancelled.error) == (1, "the engine was woken up before it slept")
    assert done == Done(2)
    late = engine.add("late", _PROMPTS[2])
    engine.run()
    assert late.finish_reason == "length"


def test_another_sleep_takes_the_place_of_one_that_waits(engine: SmallEngine) -> None:
    engine.add("running", _PROMPTS[1])
    engine.step()
    assert _sleep(engine, 1, "wait") == []
    cancelled, done = _sleep(engine, 0, "keep")
    assert cancelled.error == "another call of /sleep took its place"
    assert done == Done(1)
    assert not engine.core.has_work


def test_the_engine_computes_again_once_all_parts_are_back(engine: SmallEngine) -> None:
    _sleep(engine, 1)
    queued = engine.add("queued", _PROMPTS[1])
    assert _wake_up(engine, "weights") == Done(2, is_done=False)
    assert not engine.core.has_work
    assert _wake_up(engine, "kv_cache") == Done(2)
    engine.run()
    assert queued.finish_reason == "length"


def test_weights_that_are_gone_keep_the_engine_asleep(plain_llama: PreTrainedModel) -> None:
    files: list[PreTrainedModel] = []

    def reload() -> PreTrainedModel:
        if not files:
            raise EngineStartError("no such file")
        return copy.deepcopy(files[0])

    engine = SmallEngine(copy.deepcopy(plain_llama), reload=reload)
    _sleep(engine, 1)
    failed = _wake_up(engine)
    assert (failed.is_done, failed.error) == (False, "the weights cannot be read again: no such file")
    assert not engine.core.has_work
    files.append(plain_llama)
    assert _wake_up(engine) == Done(2)
    assert engine.generate(_PROMPTS) == greedy_outputs(plain_llama, _PROMPTS, 16)


def test_adapters_stay_while_the_engine_sleeps(
    engine: SmallEngine, plain_llama: PreTrainedModel, tmp_path: Path
) -> None:
    folder = save_adapter(plain_llama, tmp_path)
    assert engine.load_adapter(1, folder) is None
    _sleep(engine, 1)
    _wake_up(engine)
    assert engine.generate(_PROMPTS, adapter_id=1) == adapted_outputs(plain_llama, folder, _PROMPTS, 16)


def test_without_sleep_mode_only_level_zero_is_allowed(llama: PreTrainedModel) -> None:
    engine = SmallEngine(llama)
    (refused,) = _sleep(engine, 1)
    assert refused.error == "sleep levels 1 and 2 need --enable-sleep-mode"
    assert _sleep(engine, 0) == [Done(1)]


@pytest.mark.parametrize("interrupts", [True, False])
def test_resetting_the_prefix_cache_forgets_prompts(engine: SmallEngine, interrupts: bool) -> None:
    engine.generate(_PROMPTS[:1])
    running = engine.add("running", _PROMPTS[2])
    engine.step()
    engine.core.execute(ResetPrefixCache(3, interrupts))
    assert engine.core.take_done() == [Done(3, is_done=interrupts)]
    engine.run()
    assert running.finish_reason == "length"
    assert engine.complete(_PROMPTS[:1])[0].num_cached_tokens == (0 if interrupts else 48)
