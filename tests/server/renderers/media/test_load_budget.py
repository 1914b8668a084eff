"""The memory of images that wait for processing is bounded."""

import asyncio

import pytest

from server.renderers.media.load_budget import LoadBudget


class Prompt:
    """Holds its lease until `release`."""

    def __init__(self, budget: LoadBudget, num_bytes: int) -> None:
        self.is_in = False
        self.may_go = asyncio.Event()
        self.shrinks_to: int | None = None
        self.task = asyncio.create_task(self._run(budget, num_bytes))

    async def _run(self, budget: LoadBudget, num_bytes: int) -> None:
        async with budget.hold(num_bytes) as lease:
            self.is_in = True
            await self.may_go.wait()
            if self.shrinks_to is not None:
                lease.shrink_to(self.shrinks_to)
                self.may_go.clear()
                await self.may_go.wait()

    async def release(self) -> None:
        self.may_go.set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def start(budget: LoadBudget, *sizes: int) -> list[Prompt]:
    prompts = [Prompt(budget, size) for size in sizes]
    await settle()
    return prompts


async def end(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        prompt.shrinks_to = None
        prompt.may_go.set()
    await asyncio.gather(*(prompt.task for prompt in prompts), return_exceptions=True)


async def test_prompts_that_fit_start_at_once_and_the_others_in_order() -> None:
    prompts = await start(LoadBudget(100), 60, 40, 50, 10)
    assert [p.is_in for p in prompts] == [True, True, False, False]
    await prompts[1].release()
    assert [p.is_in for p in prompts] == [True, True, False, False], "the third is too large still, the fourth its next"
    await prompts[0].release()
    assert [p.is_in for p in prompts] == [True] * 4
    await end(prompts)


async def test_a_prompt_larger_than_the_budget_runs_alone() -> None:
    prompts = await start(LoadBudget(100), 10, 500, 10)
    assert [p.is_in for p in prompts] == [True, False, False]
    await prompts[0].release()
    assert [p.is_in for p in prompts] == [True, True, False]
    await end(prompts)
    assert prompts[2].is_in


async def test_shrinking_a_share_makes_room() -> None:
    prompts = await start(LoadBudget(100), 100, 80)
    prompts[0].shrinks_to = 20
    await prompts[0].release()
    assert prompts[1].is_in
    await end(prompts)


@pytest.mark.parametrize("has_room", [False, True])
async def test_a_cancelled_prompt_does_not_block_others(has_room: bool) -> None:
    prompts = await start(LoadBudget(100), 100, 100, 100)
    if has_room:
        prompts[0].may_go.set()
        await prompts[0].task
    prompts[1].task.cancel()
    await settle()
    await prompts[0].release()
    assert prompts[2].is_in
    await end(prompts)
