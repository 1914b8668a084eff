"""A start logs one line that names its differences from `vllm serve`."""

import json
import re

import pytest

from startup.vllm.launch.differences import describe_differences
from startup.vllm.launch.parts.serving import LATE_CAPTURES
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import VllmRecord
from tests.startup.vllm.fake_start import FakeStart
from tools.generated_docs import DOCS

_PORT, _DRAIN, _WATCHDOG, _PAGE = (
    "--listen-when-ready",
    "--shutdown-timeout 0",
    "--engine-watchdog-timeout 0",
    "--no-web-page",
)
_LATE, _OFFLINE, _CODES = "--cuda-graphs before-ready", 'VCLI_LEAVE_OUT="offline hub"', "VCLI_PLAIN_VLLM=1"


def _undone_by(*arguments, is_offline=False, more=(), **options):
    line = VllmLine.of(("model", *arguments), VllmRecord())
    options = VllmOptions(line=line, **options)
    return _named_in(describe_differences(line, options, more, is_offline=is_offline))


def _named_in(message):
    first, *others = re.findall(r" \[([^]]+)\]", message)
    assert first == "undo"
    return others


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ((), {}, [_PORT, _DRAIN, _WATCHDOG, _PAGE, _CODES]),
        ((), {"listen_when_ready": True}, [_DRAIN, _WATCHDOG, _PAGE, _CODES]),
        (("--uds", "/run/socket"), {}, [_DRAIN, _WATCHDOG, _PAGE, _CODES]),
        (("--shutdown-timeout", "0"), {}, [_PORT, _WATCHDOG, _PAGE, _CODES]),
        ((), {"engine_watchdog_timeout_s": 0.0}, [_PORT, _DRAIN, _PAGE, _CODES]),
        ((), {"web_page": False}, [_PORT, _DRAIN, _WATCHDOG, _CODES]),
        (
            (),
            {"is_offline": True, "more": [LATE_CAPTURES]},
            [_PORT, _DRAIN, _WATCHDOG, _PAGE, _LATE, _OFFLINE, _CODES],
        ),
    ],
    ids=str,
)
def test_only_differences_in_force_are_named(arguments, settings, expected):
    assert _undone_by(*arguments, **settings) == expected


def test_the_page_of_vllm_lists_each_difference():
    table = (DOCS / "vllm-engine.md").read_text().partition("## What differs from")[2].partition("\n## ")[0]
    last_cells = " ".join(row.split(" | ")[-1] for row in table.splitlines() if row.startswith("|"))
    listed = re.findall(r"`([^`]+)`", last_cells)
    assert [each for each in _undone_by(is_offline=True, more=[LATE_CAPTURES]) if each not in listed] == []


@pytest.mark.thorough
def test_a_start_logs_one_line_with_the_differences(folder):
    with FakeStart(folder, "model", "--listen-when-ready", "--log-format", "json") as start:
        start.wait_logged("differs from vllm serve")
        [line] = start.lines_with("differs from vllm serve")
    record = json.loads(line)
    assert (record["level"], record["role"]) == ("INFO", "launcher")
    assert _named_in(record["message"]) == [_DRAIN, _WATCHDOG, _PAGE, _CODES]
