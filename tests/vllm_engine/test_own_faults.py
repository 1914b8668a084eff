"""If something breaks that `vllm serve` does not use, real vLLM starts, with one line of ours in the log."""

import re
from pathlib import Path

import pytest

from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.vllm_server import VllmServer

_WARNING = re.compile(r"WARNING [\d: -]+\(\w+\) startup\..*")
"""Matches our warning, also after a line that a library has not ended."""
_BROKEN = Path(__file__).parents[1] / "startup" / "vllm" / "broken"


@pytest.mark.parametrize(
    "fault",
    ["execution", "fork", "protocol", "killed in its imports", "stopped with a request", "patch in engine"],
)
def test_a_start_that_only_our_machinery_breaks_is_ready_with_one_line(fault, small_model, expected_text, tmp_path):
    variables = {"PYTHONPATH": str(_BROKEN), "BROKEN": fault}
    with VllmServer("ours", small_model, *SMALL, folder=tmp_path, environment=variables) as server:
        server.wait_ready()
        assert server.generate() == expected_text
        lines = _WARNING.findall(server.log)
        assert len(lines) == 1, lines
        assert server.terminate() == 0
