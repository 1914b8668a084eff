"""Closed, broken and full standard streams change neither what a command does nor its exit code."""

import sys
from typing import Final

import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from tests.support.marks import thorough_but_for
from tests.support.standby_process import StandbyProcess


def unread(*numbers: int) -> tuple[str, ...]:
    """The launcher of a command whose output goes into a pipe that nobody reads."""
    code = "import os, sys; end, begin = os.pipe(); os.close(end); "
    code += f"[os.dup2(begin, number) for number in {numbers}]; os.execvp(sys.argv[1], sys.argv[1:])"
    return (sys.executable, "-c", code)


LAUNCHERS: Final = {
    "closed output": ("sh", "-c", 'exec "$@" >&-', "sh"),
    "closed errors": ("sh", "-c", 'exec "$@" 2>&-', "sh"),
    "all closed": ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"),
    "errors on a full disk": ("sh", "-c", 'exec "$@" 2>/dev/full', "sh"),
    "unread output": unread(1),
    "unread errors": unread(2),
    "all unread": unread(1, 2),
}
COMMANDS: Final = {
    "--version": 0,
    "doctor --env": 0,
    "caches": 0,
    "explain no-such-code": 2,
    "serve --nosuch": 2,
    "serve /no/such/model --port 0": 3,
    "serve /no/such/model --port 0 --log-format json": 3,
    "wait --port 1 --timeout 0.1": 4,
    "stop 1": 1,
    "chat --url http://127.0.0.1:1 --quick x": 1,
}
"""A command -> its exit code."""


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("command", thorough_but_for(COMMANDS, "doctor --env"))
def test_exit_codes_do_not_depend_on_the_streams(command, launcher):
    done = run_cli(*command.split(), launcher=LAUNCHERS[launcher])
    assert done.returncode == COMMANDS[command]
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_server_serves_and_stops_whatever_its_streams_are(launcher, tiny_llama):
    with ServerProcess([str(tiny_llama)], launcher=LAUNCHERS[launcher]) as server:
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0


@pytest.mark.thorough
def test_a_warm_start_works_without_streams(tiny_llama):
    with StandbyProcess() as standby:
        launcher, variables = LAUNCHERS["all closed"], standby.environment
        with ServerProcess([str(tiny_llama)], launcher=launcher, environment=variables) as server:
            assert server.complete(max_tokens=4) == 200
            assert server.terminate() == 0
