"""A start logs one line that names its differences from `vllm serve`."""

import json
import re

import pytest

from startup.settings.config import VllmOptions
from startup.vllm.launch.differences import find_differences
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts
from tests.startup.vllm.fake_start import FakeStart
from tests.support.generated_docs import DOCS

_ALL = ["--listen-when-ready", "--shutdown-timeout 0", "--engine-watchdog-timeout 0", "VCLI_PLAIN_VLLM=1"]


def _undone_by(*words, is_offline=False, has_late_graphs=False, **options):
    line = CommandLine.of(("model", *words), VllmFacts())
    options = VllmOptions(words=line.words, **options)
    found = find_differences(line, options, is_offline=is_offline, has_late_graphs=has_late_graphs)
    return [difference.restored_by for difference in found]


@pytest.mark.parametrize(
    ("words", "options", "missing"),
    [
        ((), {}, None),
        ((), {"listen_when_ready": True}, "--listen-when-ready"),
        (("--uds", "/run/socket"), {}, "--listen-when-ready"),
        (("--shutdown-timeout", "0"), {}, "--shutdown-timeout 0"),
        ((), {"engine_watchdog_timeout_s": 0.0}, "--engine-watchdog-timeout 0"),
    ],
    ids=str,
)
def test_only_differences_in_force_are_named(words, options, missing):
    assert _undone_by(*words, **options) == [each for each in _ALL if each != missing]


def test_requests_to_the_hub_are_named_where_the_launcher_forbids_them():
    assert set(_undone_by(is_offline=True)) - set(_ALL) == {'VCLI_LEAVE_OUT="offline hub"'}


def test_graphs_that_are_captured_after_readiness_are_named():
    assert set(_undone_by(has_late_graphs=True)) - set(_ALL) == {"--cuda-graphs before-ready"}


def test_the_page_of_vllm_lists_each_difference():
    table = (DOCS / "vllm-engine.md").read_text().partition("## What differs from")[2].partition("\n## ")[0]
    last_cells = " ".join(row.split(" | ")[-1] for row in table.splitlines() if row.startswith("|"))
    listed = re.findall(r"`([^`]+)`", last_cells)
    assert [each for each in _undone_by(is_offline=True, has_late_graphs=True) if each not in listed] == []


@pytest.mark.thorough
def test_a_start_logs_one_line_with_the_differences(folder):
    with FakeStart(folder, "model", "--listen-when-ready", "--log-format", "json") as start:
        start.wait_logged("differs from vllm serve")
        [line] = start.lines_with("differs from vllm serve")
    record = json.loads(line)
    assert (record["level"], record["role"]) == ("INFO", "launcher")
    assert re.findall(r" \[([^]]+)\]", record["message"]) == ["undo", *_ALL[1:]]
