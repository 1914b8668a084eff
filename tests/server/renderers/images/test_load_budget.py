"""The memory of images that wait for processing is bounded."""

import asyncio
from collections.abc import Callable

import pytest

from server.renderers.images.errors import MediaError
from server.renderers.images.load_budget import LoadBudget
from tests.growth import growth


class Prompt:
    """Takes room for its images one after the other, then holds them until `release`."""

    def __init__(self, budget: LoadBudget, *sizes: int) -> None:
        self.num_bytes = 0
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._run(budget, sizes))

    async def _run(self, budget: LoadBudget, sizes: tuple[int, ...]) -> None:
        async with budget.hold() as lease:
            for size in sizes:
                await lease.grow(size)
                self.num_bytes += size
                await asyncio.sleep(0)
            await self.may_go.wait()

    async def release(self) -> None:
        self.may_go.set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def start(*prompts: tuple[int, ...]) -> list[Prompt]:
    budget = LoadBudget(100)
    started = [Prompt(budget, *sizes) for sizes in prompts]
    await settle()
    return started


async def end(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        prompt.may_go.set()
    await asyncio.gather(*(prompt.task for prompt in prompts), return_exceptions=True)


def sizes(prompts: list[Prompt]) -> list[int]:
    return [prompt.num_bytes for prompt in prompts]


async def test_prompts_that_fit_start_at_once_and_the_others_in_order() -> None:
    prompts = await start((60,), (40,), (50,), (10,))
    assert sizes(prompts) == [60, 40, 0, 0]
    await prompts[1].release()
    assert sizes(prompts) == [60, 40, 0, 0], "the third is too large still, the fourth its next"
    await prompts[0].release()
    assert sizes(prompts) == [60, 40, 50, 10]
    await end(prompts)


async def test_a_prompt_that_has_received_little_leaves_room_for_others() -> None:
    """Its host is slow."""
    prompts = await start((1,), (90,))
    assert sizes(prompts) == [1, 90]
    await end(prompts)


async def test_the_oldest_prompt_never_waits() -> None:
    """Two prompts that hold half of the room each and need more would wait for each other."""
    prompts = await start((50, 30), (50, 30))
    assert sizes(prompts) == [80, 50]
    await prompts[0].release()
    assert sizes(prompts) == [80, 80]
    await end(prompts)


async def test_a_prompt_larger_than_the_budget_is_rejected() -> None:
    (prompt,) = await start((60, 41))
    with pytest.raises(MediaError, match="larger than 100 bytes together"):
        await prompt.task


@pytest.mark.parametrize("has_room", [False, True])
async def test_a_cancelled_prompt_does_not_block_others(has_room: bool) -> None:
    prompts = await start((100,), (100,), (100,))
    if has_room:
        prompts[0].may_go.set()
        await prompts[0].task
    prompts[1].task.cancel()
    await settle()
    await prompts[0].release()
    assert prompts[2].num_bytes == 100
    await end(prompts)


@pytest.mark.alone
def test_a_part_costs_the_same_however_many_prompts_are_loaded() -> None:
    async def load(num_prompts: int) -> None:
        budget = LoadBudget()
        holds = [budget.hold() for _ in range(num_prompts)]
        leases = [await hold.__aenter__() for hold in holds]
        for lease in leases:
            await lease.grow(1)
        for hold in holds:
            await hold.__aexit__(None, None, None)

    def prepare(size: int) -> Callable[[], object]:
        return lambda: asyncio.run(load(size))

    assert growth(prepare) is None
