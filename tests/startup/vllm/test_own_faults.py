"""What plain vLLM starts is started, with one line, whatever breaks that plain vLLM does not use."""

from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import FAKE, ROOT, FakeStart, environment

pytestmark = pytest.mark.thorough

_BROKEN = Path(__file__).with_name("broken")
_PLAIN = "starts again without preloading"
_SPAWNS = "as a new program instead of forked"


def _environment(folder: Path, fault: str, **changes: str) -> dict[str, str]:
    return environment(folder, PYTHONPATH=f"{_BROKEN}:{FAKE}:{ROOT}", BROKEN=fault, **changes)


@pytest.mark.parametrize(
    "fault",
    [
        "execution",
        "fork",
        "protocol",
        "killed with a request",
        "stopped with a request",
        "killed in its imports",
        "exits in its imports",
        "stopped in its imports",
        "raises in its imports",
        "crashes in its forks",
        "patch in engine",
        "patch in worker",
        "patch in API server",
        "step of the launcher",
    ],
)
def test_a_start_that_only_our_machinery_breaks_is_ready_with_one_line(fault, folder):
    with FakeStart(folder, env=_environment(folder, fault)) as start:
        state = start.wait_ready().state()
        assert start.kind_of(state["engine"]["pid"]) == "spawn"
        assert start.complete("A text") == "A text was read by worker 0"
        (warning,) = start.lines_with("WARNING")
        assert _PLAIN in warning or _SPAWNS in warning
        assert start.terminate() == 0


@pytest.mark.parametrize("fault", ["system calls", "proc"])
def test_what_a_sandbox_lacks_costs_no_start(fault, folder):
    with FakeStart(folder, env=_environment(folder, fault)) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        assert len(start.lines_with("WARNING")) <= 1
