"""Builds the log line about differences from `vllm serve`. docs/vllm-engine.md lists all differences.

The line names only differences that apply to this start and that an operator sees: port, signals, exit codes,
requests to the hub.
"""

from collections.abc import Iterator
from typing import NamedTuple

from base.server_settings import SHUTDOWN_TIMEOUT_S
from startup.settings.config import VllmOptions
from startup.vllm.serving.rust_frontend import follows_rust_frontend
from startup.vllm.serving.serving_events import DRAIN, WATCHDOG
from startup.vllm_words.command_line import CommandLine


class Difference(NamedTuple):
    """One difference, and the flag or variable that restores the behaviour of `vllm serve`."""

    text: str
    restored_by: str


def describe_differences(
    line: CommandLine, options: VllmOptions, *, is_offline: bool, has_late_graphs: bool = False
) -> str:
    """Returns the differences of a start in one line."""
    differences = find_differences(line, options, is_offline=is_offline, has_late_graphs=has_late_graphs)
    found = (f"{each.text} [{each.restored_by}]" for each in differences)
    return f"differs from vllm serve [undo]: {', '.join(found)} (see docs/vllm-engine.md)"


def find_differences(
    line: CommandLine, options: VllmOptions, *, is_offline: bool, has_late_graphs: bool = False
) -> Iterator[Difference]:
    """Yields differences that apply.

    Args:
        is_offline: whether the launcher, not the user, set HF_HUB_OFFLINE.
        has_late_graphs: whether engines capture CUDA graphs after readiness.
    """
    if line.listens and line.uds is None and not options.listen_when_ready:
        yield Difference("port answers during the start", "--listen-when-ready")
    if DRAIN.applies and line.last("--shutdown-timeout") is None:
        yield Difference(f"SIGTERM drains for {SHUTDOWN_TIMEOUT_S:g} s", "--shutdown-timeout 0")
    timeout_s = options.engine_watchdog_timeout_s
    if timeout_s and WATCHDOG.applies and not follows_rust_frontend():
        yield Difference(f"engine silent for {timeout_s:g} s is killed", "--engine-watchdog-timeout 0")
    if has_late_graphs:
        yield Difference("CUDA graphs are captured after readiness", "--cuda-graphs before-ready")
    if is_offline:
        yield Difference("no requests to the hub", 'VCLI_LEAVE_OUT="offline hub"')
    yield Difference("failures exit with 3 or 1", "VCLI_PLAIN_VLLM=1")
