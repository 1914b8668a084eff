"""Random worlds prove what the scheduler promises in every state, with the books of `scheduler_world.World`.

After every step of a world (a request comes or goes; a process is ready, fails, dies or ends; memory is
measured, comes back late or is read late; a model is loaded or unloaded by hand; the file changes;
time passes):

- A request is admitted once, to a process that is ready and not asked to end, in the order of arrival, within
  the limit of concurrency; or refused once, with a reason, and never after its admission.
- No process is asked to stop while it has a lease, nor twice. A model is stopped for others only if it is
  ready, has no lease, is not pinned, has had its minimum stay, and those that wait have no room beside it.
- A model has at most one process, starts only for somebody who waits, not in the pause after a failure, and
  beside none that it excludes. The number of processes, the sum of their needs and the memory that is really
  free are kept.
- A failed start answers all who wait for it. Requests are "overloaded" only above `max_waiting`.
- States, leases and waiting requests of `view` are those of the world.
- A tick at any time before `next_tick_s` would do nothing; after a tick there is a pause.
- In a world without failures and edits, no request waits longer than the scheduler promises.
- At last nothing fails any more, no new request comes, and each waiting one is admitted or refused within the
  bound that the scheduler promises. Then the router ends, and nothing is left.
"""

import pytest

from tests.startup.router.scheduler_world import World, WorldOptions


def run(seed: int, num_steps: int, options: WorldOptions | None = None) -> World:
    world = World(seed, options)
    for _ in range(num_steps):
        world.step()
    world.settle()
    world.end()
    return world


@pytest.mark.parametrize("seed", range(6))
def test_the_books_agree_in_a_random_world(seed):
    run(seed, 250)


def test_a_random_world_does_everything():
    """Else the proofs of random worlds would hold because nothing happens."""
    world = run(1, 1200, WorldOptions(num_models=5, budget=10, total=8, max_waiting=3))

    assert {"Start", "Stop", "Admit", "MeasureFree", "overloaded", "failed", "no_room"} <= set(world.counts)
    assert world.counts["Admit"] > 50


@pytest.mark.parametrize("max_running", [1, 2])
def test_no_request_waits_longer_than_the_bound(max_running):
    options = WorldOptions(
        num_models=4, budget=None, total=None, max_running=max_running, max_waiting=1000, is_plain=True,
        has_failures=False, has_edits=False,
    )  # fmt: skip
    for seed in range(4):
        world = run(seed, 400, options)
        assert world.counts["Admit"] > 50
        assert world.longest_wait_s <= world.bound_s
        assert "Refuse" not in world.counts or world.counts["Refuse"] == world.counts["removed"] + 1


@pytest.mark.thorough
@pytest.mark.parametrize("first", [pytest.param(number * 100, id=f"part{number}") for number in range(5)])
def test_the_books_agree_in_275_random_worlds(first):
    """110 000 steps in all parts."""
    for seed in range(1000 + first, 1055 + first):
        try:
            run(seed, 400)
        except AssertionError as err:
            raise AssertionError(f"world {seed}: {err}") from err
