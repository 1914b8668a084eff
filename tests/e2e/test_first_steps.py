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
    request = _block(_ROOT / "README.md", "Use", "sh")
    commands = _block(_PAGE, title, "sh").replace(_STOP, request + _STOP)
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


def test_the_python_example_works_with_a_key(start_server):
    key = "k-first-steps"
    with start_server("--api-key", key) as server:
        example = _block(_PAGE, "From Python", "python").replace("8000", str(server.port))
        environment = {**os.environ, "VLLM_API_KEY": key}
        run = subprocess.run([sys.executable, "-c", example], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "The capital of France is Paris.\nThe capital of France is Paris."


def _block(page: Path, title: str, language: str) -> str:
    """The only block of code of a section."""
    section = page.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block
