"""Processes in messages: one line, without control characters or secrets."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from startup.session.preflight.network import describe_process

_RENAMES = """
import sys
from base.machine.command_line import replace_command_line
replace_command_line(bytes.fromhex(sys.argv[1]))
print("renamed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def describe() -> Iterator[Callable[[bytes], str]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(command_line: bytes) -> str:
        command = [sys.executable, "-c", _RENAMES, command_line.hex()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"renamed\n"
        return describe_process(process.pid).removeprefix(f"pid {process.pid} ")

    yield run
    for process in started:
        process.communicate()


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
def test_a_process_is_named_in_one_short_line(command_line, shown, describe):
    found = describe(command_line)
    assert found.startswith(shown)
    assert "sk-1" not in found
    assert found.isprintable()
