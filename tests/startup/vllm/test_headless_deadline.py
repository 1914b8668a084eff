"""--startup-timeout bounds starts whose end is known: a headless node never tells that it is ready."""

from pathlib import Path

from startup.deadline import EXIT_START_FAILED
from tests.startup.vllm.fake_start import FakeStart


def test_a_headless_node_has_no_startup_timeout(folder: Path) -> None:
    with FakeStart(folder, "--headless", "--startup-timeout", "0.001") as start:
        start.wait_until_it_is_told("headless engine")
        assert start.end() == 0


def test_a_start_that_listens_is_stopped_at_the_timeout(folder: Path) -> None:
    with FakeStart(folder, "--startup-timeout", "0.001") as start:
        assert start.process.wait(60) == EXIT_START_FAILED
        assert start.told("--startup-timeout 0.001 s")
