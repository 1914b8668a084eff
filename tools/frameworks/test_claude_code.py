"""Claude Code without a person: it calls the tool that the model asks for, and reports the model's answer."""

import json
import os
import subprocess

import pytest

from tools.frameworks.clients.scenario import MODEL, NOTE, NOTE_ANSWER, READ_NOTE
from tools.frameworks.environment import install_claude_code

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_claude_code_reads_a_file(server, tmp_path):
    claude = install_claude_code()
    (tmp_path / "note.txt").write_text(NOTE)
    environment = {
        "HOME": str(tmp_path),
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1000",
    }
    command = [claude, "-p", READ_NOTE, "--allowedTools", "Bash", "--output-format", "json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["result"] == NOTE_ANSWER
    assert result["num_turns"] == 2
