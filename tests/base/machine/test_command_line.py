"""Secrets are masked in the command line that other users can read, and nothing else is."""

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys
from base.machine.command_line import mask_command_line
mask_command_line()
sys.stdout.write(open("/proc/self/cmdline").read())
sys.stdout.flush()
sys.stdin.read()
"""


def test_secrets_are_masked_in_proc_cmdline(tmp_path):
    words = ["MODEL", "--api-key", "one", "ключ", "--hf-tok", "two", "twofold", "one-more", "", "--x_key=one"]
    child = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    while "--x_key=***" not in Path(f"/proc/{child.pid}/cmdline").read_text():
        assert child.poll() is None
    shown = Path(f"/proc/{child.pid}/cmdline").read_text().split("\0")[3:-1]
    child.stdin.close()
    assert child.stdout.read().split("\0")[3:-1] == shown
    assert child.wait() == 0
    child.stdout.close()
    stars = "*" * len("ключ".encode())
    assert shown == ["MODEL", "--api-key", "***", stars, "--hf-tok", "***", "twofold", "one-more", "", "--x_key=***"]
