"""Processes in messages: one line, without control characters or secrets."""

import subprocess
import sys

import pytest

from startup.session.preflight.network import describe_process

_RENAMES = """
import sys
from base.machine.command_line import replace_command_line
replace_command_line(bytes.fromhex(sys.argv[1]))
print("renamed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("command_line", "shown"),
    [
        (b"VLLM::EngineCore" + 200 * b" ", "(VLLM::EngineCore)"),
        (b"VLLM::EngineCore" + 200 * b"\0", "(VLLM::EngineCore)"),
        (b"VLLM::EngineCore" + 100 * b" \0", "(VLLM::EngineCore)"),
        (b"nginx: master\nprocess\ttwo\0", "(nginx: master process two)"),
        (b"a\x1b[31m\x07b\r\0", r"(a\x1b[31m\x07b)"),
        (b"a\xff\xe2\x80\xaeb\0", r"(a\udcff\u202eb)"),
        (b"vllm\0serve\0--api-key\0sk-1\0m\0", "(vllm serve --api-key ********"),
        (b"vllm serve --api-key sk-1 -tp 1    ", "(vllm serve --api-key ******** -tp 1)"),
        (b"vllm serve --hf-token=sk-1\0\0\0\0", "(vllm serve --hf-token=********)"),
        (b"x" * 4000 + b"\0", f"({'x' * 119}…)"),
        (b"", "(python"),
    ],
    ids=[*("blanks", "NULs", "both", "lines", "ESC", "bytes", "secret", "title", "one word", "long", "none")],
)
def test_a_process_is_named_in_one_short_line(command_line, shown):
    command = [sys.executable, "-c", _RENAMES, command_line.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"renamed\n"
        found = describe_process(process.pid)
    assert found.startswith(f"pid {process.pid} {shown}")
    assert "sk-1" not in found
    assert found.isprintable()
