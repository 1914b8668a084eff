"""Every command of vLLM gives the same as `vllm-cli NAME`, by a link `vllm`, and by vLLM's own program."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.peer_vllm import BIN, PYTHON, ROOT
from vllm_cli.commands.of_vllm import BENCHMARKS
from vllm_cli.main import COMMANDS

pytestmark = pytest.mark.versions

OF_VLLM: Final = {entry.name for entry in COMMANDS if "of_vllm" in entry.target}
SHARED: Final = {"serve", "chat", "complete", "collect-env", "bench"}
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


def test_every_command_of_vllm_has_a_name_here():
    assert _names() - OF_VLLM - SHARED == set()
    assert _names("bench") - {command.name for command in BENCHMARKS} - SHARED_BENCHMARKS == set()


@pytest.mark.parametrize(
    "words",
    [
        *((name, "--help") for name in sorted(OF_VLLM)),
        ("launch",),
        ("snapshot", "inspect", "/missing"),
        ("download-kernels", "--dry-run"),
        ("preload", "--nonsense"),
        *(("bench", command.name, "--help") for command in BENCHMARKS),
    ],
    ids=" ".join,
)
def test_a_command_of_vllm_is_the_same_as_by_the_link_and_by_vllm(words: tuple[str, ...], tmp_path: Path):
    plain = _run(BIN / "vllm", *words)
    ours, link = _run(PYTHON, "-m", "vllm_cli", *words), _run(PYTHON, "-c", _LINK, *words)
    assert ours[:2] == link[:2] == plain[:2]
    assert [each[2].splitlines()[-1:] for each in (ours, link)] == [plain[2].splitlines()[-1:]] * 2


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
