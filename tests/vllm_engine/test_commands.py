"""Commands of vLLM give the same by a link `vllm` as by vLLM's own program."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from envs.replacements import REPLACEMENTS
from tests.support.peer_vllm import BIN, PYTHON, ROOT
from vllm_cli.main import COMMANDS

pytestmark = pytest.mark.versions

SHARED_BENCHMARKS: Final = {"serve", "startup"}
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
    assert {f"bench {name}" for name in _names("bench") - SHARED_BENCHMARKS} - REPLACEMENTS.keys() == set()


@pytest.mark.parametrize("words", [("--help",), ("-i", "/missing", "-o", "/missing")], ids=" ".join)
def test_run_batch_is_the_same_as_by_the_link_and_by_vllm(words: tuple[str, ...]):
    plain = _run(BIN / "vllm", "run-batch", *words)
    ours, link = _run(PYTHON, "-m", "vllm_cli", "run-batch", *words), _run(PYTHON, "-c", _LINK, "run-batch", *words)
    assert ours[:2] == link[:2] == plain[:2]
    assert [each[2].splitlines()[-1:] for each in (ours, link)] == [plain[2].splitlines()[-1:]] * 2


@pytest.mark.parametrize("words", [("launch",), ("snapshot", "nonsense"), ("bench", "latency", "--help")], ids=" ".join)
def test_other_commands_run_by_the_link(words: tuple[str, ...]):
    plain, link = _run(BIN / "vllm", *words), _run(PYTHON, "-c", _LINK, *words)
    assert link[:2] == plain[:2]
    assert link[2].splitlines()[-1:] == plain[2].splitlines()[-1:]


def test_a_file_with_variables_is_the_same_as_one_with_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """vLLM rejects both values with the same words after it has read the whole file."""
    monkeypatch.setenv("HOW_LONG", "-5")
    path = tmp_path / "serve.yaml"
    errors = []
    for text in ("${HOW_LONG}", "${NOT_SET:--5}", "-5"):
        path.write_text(f"model: {ROOT}/.peers/model\nenforce-eager: ${{EAGER:-true}}\nmax-model-len: {text}\n")
        code, _, error = _run(PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", "--preflight", "off",
                              "--config", path)  # fmt: skip
        assert code != 0
        errors.append([re.sub(r"^(\(\S+ pid=\d+\) )+", "", line) for line in error.splitlines() if "value=-5" in line])
    assert errors[0] == errors[1] == errors[2] != []
