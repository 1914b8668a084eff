"""--startup-timeout applies only to starts that report readiness, which a headless node does not."""

from pathlib import Path

from startup.deadline import EXIT_START_FAILED
from tests.startup.vllm.fake_start import FakeStart


def test_a_headless_node_has_no_startup_timeout(folder: Path) -> None:
    with FakeStart(folder, "--headless", "--startup-timeout", "0.001") as start:
        start.wait_for_line("headless engine")
        assert start.end() == 0


def test_a_start_that_listens_is_stopped_at_the_timeout(folder: Path) -> None:
    with FakeStart(folder, "--startup-timeout", "0.001") as start:
        assert start.process.wait(60) == EXIT_START_FAILED
        assert start.lines_with("--startup-timeout 0.001 s")
