"""Builds the log line about differences from `vllm serve`. docs/vllm-engine.md lists all differences.

The line names only differences that apply to this start and that an operator sees: port, signals, exit codes,
requests to the hub.
"""

from collections.abc import Iterable

from base.server_settings import SHUTDOWN_TIMEOUT_S
from startup.vllm.serving.serving_events import DRAIN, WATCHDOG
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.vllm_line import VllmLine


def describe_differences(line: VllmLine, options: VllmOptions, more: Iterable[str] = (), *, is_offline: bool) -> str:
    """Returns the differences of a start in one line, each with what restores the behaviour of `vllm serve`.

    Args:
        more: further differences, which only some starts have.
        is_offline: whether the launcher, not the user, set HF_HUB_OFFLINE.
    """
    answers_early = line.listens and line.uds is None and not options.listen_when_ready
    drains = DRAIN.applies and line.last("--shutdown-timeout") is None
    timeout_s = options.engine_watchdog_timeout_s
    is_watched = timeout_s and WATCHDOG.applies
    differences = (
        (answers_early, "port answers during the start [--listen-when-ready]"),
        (drains, f"SIGTERM drains for {SHUTDOWN_TIMEOUT_S:g} s [--shutdown-timeout 0]"),
        (is_watched, f"engine silent for {timeout_s:g} s is killed [--engine-watchdog-timeout 0]"),
        (options.web_page and line.listens, "/ is a page with a chat [--no-web-page]"),
        *((True, text) for text in more),
        (is_offline, 'no requests to the hub [VCLI_LEAVE_OUT="offline hub"]'),
        (True, "failures exit with 3 or 1 [VCLI_PLAIN_VLLM=1]"),
    )
    found = ", ".join(text for applies, text in differences if applies)
    return f"differs from vllm serve [undo]: {found} (see docs/vllm-engine.md)"
