"""The commands of docs/first-steps.md and the request of the README, as a newcomer types them."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ports import free_port

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "first-steps.md"
_STOP = "vllm-cli stop 8000\n"
_LIMIT_S = 300


@pytest.mark.parametrize("title", ["Serve a model and chat with it", "Start in a fraction of a second"])
def test_the_commands_of_a_section_work(title, tmp_path):
    request = _commands(_ROOT / "README.md", "Use")
    commands = _commands(_PAGE, title).replace(_STOP, request + _STOP)
    port = free_port()
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    shell = subprocess.Popen(
        ["bash", "-euxo", "pipefail", "-c", commands.replace("8000", str(port)) + "wait\n"],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(runtime),
            "VCLI_ENGINE": "embedded",
            "VCLI_STANDBY": "auto",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        answers, log = shell.communicate(timeout=_LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
    assert shell.returncode == 0, answers + log
    assert answers.count("The capital of France is Paris.") == commands.count("What is the capital of France?") > 0
    assert ("warm start: forked from the standby" in log) == ("standby" in commands)


def _commands(page: Path, title: str) -> str:
    """The only shell block of a section."""
    section = page.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    [commands] = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return commands
