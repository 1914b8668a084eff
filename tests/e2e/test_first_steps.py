"""The commands of docs/first-steps.md, as a newcomer types them."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ports import free_port

_PAGE = Path(__file__).parents[2] / "docs" / "first-steps.md"
_LIMIT_S = 300


@pytest.mark.thorough
@pytest.mark.parametrize("title", ["Serve a model and chat with it", "Start in a fraction of a second"])
def test_the_commands_of_a_section_work(title: str, tmp_path: Path) -> None:
    section = _PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    [commands] = re.findall(r"^```sh\n(.*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
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
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=_LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
    assert shell.returncode == 0, output
    assert ("Paris" if "chat" in commands else "warm start: forked from the standby") in output
