"""Many drains under load lose no request. Many kills of any process leave no process. Takes minutes."""

import random
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.e2e.process_tree import Role, find_process
from tests.support.openai_client import LoadClients
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

_NUM_DRAINS = 20
_NUM_KILLS = 50
_GONE_S = 60.0
_ROLES: tuple[Role, ...] = ("api", "engine", "forkserver", "responder", "prefetch", "resource_tracker")
_VITAL = ("api", "engine")


@pytest.mark.timeout(3600)
def test_no_request_is_lost_in_many_drains_under_load(start_server):
    for number in range(_NUM_DRAINS):
        with start_server("--shutdown-timeout", "300") as server:
            with LoadClients(server.port, num_clients=8) as clients:
                wait_until(lambda clients=clients: clients.endings["answered"] >= 8)
                time.sleep(random.Random(number).random())  # the drain begins while requests run
                assert server.terminate(timeout_s=400) == 0
            print(number, dict(clients.endings), clients.num_repeated, "repeated")
            assert not clients.losses
            assert clients.endings["lost"] == clients.endings["failed"] == 0


@pytest.mark.timeout(3600)
def test_no_process_is_left_after_many_kills_of_any_role(start_server):
    for number in range(_NUM_KILLS):
        dice = random.Random(number)
        role = _ROLES[number % len(_ROLES)]
        with start_server("--prefetch", "on", wait=False) as server:
            _wait_role_or_ready(server, role, is_ready=dice.random() < 0.4)
            process = find_process(server, role)
            server.family()
            if process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if role in _VITAL and process is not None:
                server.process.wait(_GONE_S)
            elif server.process.poll() is None:
                server.terminate()
            print(number, role, "gone" if process is None else "killed", server.process.returncode)
            assert server.process.returncode in _codes(role if process is not None else None), server.log


def _wait_role_or_ready(server: Any, role: Role, *, is_ready: bool) -> None:
    """Waits until the role's process exists, or until the server is ready and the process has exited."""

    def is_reached() -> bool:
        server.family()
        health = server.health()
        return health == 200 or (not is_ready and find_process(server, role) is not None)

    wait_until(is_reached, 240.0)


def _codes(killed: Role | None) -> tuple[int, ...]:
    """Possible exit codes after the role's process was killed, or after SIGTERM during the start."""
    match killed:
        case "api":
            return (-9,)
        case "engine":
            return (1, 3)
        case "forkserver":
            return (0, 1, 3, -15)
        case _:
            return (0, -15)
