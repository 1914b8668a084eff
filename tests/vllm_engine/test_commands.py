"""Commands of vLLM give the same by a link `vllm` as by vLLM's own program."""

import os
import re
import subprocess
from typing import Final

import pytest

from envs.replacements import REPLACEMENTS
from tests.support.peer_vllm import BIN, PYTHON, ROOT
from vllm_cli.main import COMMANDS

pytestmark = pytest.mark.versions

OWN_BENCHMARKS: Final = {"serve", "startup"}
_LINK: Final = "import sys; sys.argv[0] = 'vllm'; from vllm_cli.__main__ import main; sys.exit(main())"
_LINE: Final = r"^(\(\S+ pid=\d+\) )?(INFO|WARNING|ERROR|DEBUG) \S+ \S+ .*\n"
"""Matches log lines. They have a time and a process id, and depend on earlier imports."""


def _run(*command: object) -> tuple[int, str, str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "110"}
    done = subprocess.run([*map(str, command)], env=variables, capture_output=True, text=True, timeout=600, cwd=ROOT)
    return done.returncode, re.sub(_LINE, "", done.stdout, flags=re.M), re.sub(_LINE, "", done.stderr, flags=re.M)


def _names(*words: str) -> set[str]:
    """The commands that vLLM's own help lists."""
    code, out, _ = _run(BIN / "vllm", *words, "--help")
    assert code == 0
    found = re.search(r"\{([a-z,-]+)\}", out)
    assert found is not None, out
    return set(found[1].split(","))


def test_every_command_of_vllm_has_a_name_here_or_is_named_by_an_error():
    assert _names() - {entry.name for entry in COMMANDS} - REPLACEMENTS.keys() == set()
    assert {f"bench {name}" for name in _names("bench") - OWN_BENCHMARKS} - REPLACEMENTS.keys() == set()


@pytest.mark.parametrize("words", [
    ("launch",), ("snapshot", "nonsense"), ("bench", "latency", "--help"), ("run-batch", "-i", "/no", "-o", "/no"),
], ids=" ".join)  # fmt: skip
def test_commands_run_by_the_link(words: tuple[str, ...]):
    """`tests/startup/vllm/test_vllm_command.py` shows that `vllm-cli run-batch` is the same as the link."""
    plain, link = _run(BIN / "vllm", *words), _run(PYTHON, "-c", _LINK, *words)
    assert link[:2] == plain[:2]
    assert link[2].splitlines()[-1:] == plain[2].splitlines()[-1:]
