"""The launcher reports mistakes in a start within a second. vLLM itself refuses each of these starts, too.

Each start of real vLLM runs on a terminal, with and without the checks before the start. Without them, vLLM
reports the fault after its imports. `-s` prints a line for each fault. All faults take 20 minutes. `-k
length` runs some of them.
"""

import itertools
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import pytest

from tests.support.peer_vllm import PYTHON, ROOT
from tests.support.ports import free_port
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.preflight.written_starts import WrittenStart, held_out_faults
from tests.vllm_engine.vllm_server import ENVIRONMENT

_FAULTS: Final = {fault.text: fault for fault in held_out_faults()}
_MOST_S: Final = 1.0
_MOST_LINES: Final = 3
_MOST_LINES_LATER: Final = 12
_LEAST_SHARE: Final = 0.9
_REFUSED: Final = (1, 2, 3)
_OF_ANY_START: Final = ("INFO ", "WARNING ")
_OF_A_FAILURE: Final = ("ERROR ", "Error: ", "error: ", "Process ")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class _Line(NamedTuple):
    text: str
    seconds: float
    """The seconds since the start."""


class _Start:
    """A start on its own terminal. The end of the `with` block ends it."""

    def __init__(self, fault: WrittenStart, folders: StartFolders, *words: str) -> None:
        folder = folders.path("folder")
        given = {name: folders.fill(value) for name, value in fault.variables.items()}
        variables = {**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        port = () if "--port" in fault.words else ("--port", str(free_port()))
        given_words = (*map(folders.fill, fault.words), *port)
        command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", *words, *given_words]
        self._terminal_fd, theirs = pty.openpty()
        self._begin = time.monotonic()
        self.process = subprocess.Popen(
            command, env=variables | given, cwd=folder, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> "_Start":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        for _line in self.lines():
            pass
        self.process.wait(60)
        os.close(self._terminal_fd)

    def lines(self) -> Iterator[_Line]:
        """Yields lines until all processes have closed the terminal, which Linux reports as EIO."""
        rest = b""
        with suppress(OSError):
            while piece := os.read(self._terminal_fd, 65536):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    text = _COLOUR.sub("", line.decode(errors="replace")).strip("\r")
                    yield _Line(text, time.monotonic() - self._begin)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> StartFolders:
    return StartFolders(tmp_path_factory.mktemp("starts"))


@pytest.fixture(scope="module")
def _recorded(folders: StartFolders) -> None:
    """Runs a start that records vLLM's facts."""
    code = "from tests.vllm_engine.preflight.vllm_parser import record; assert record().flags"
    folder = folders.path("folder")
    environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    subprocess.run([PYTHON, "-c", code], env=environment, cwd=folder, check=True, capture_output=True)


def _is_about(fault: WrittenStart, line: str) -> bool:
    (_, told), *_ = fault.findings
    return told in line and "non-default args" not in line


def _told_at_once(fault: WrittenStart, folders: StartFolders) -> tuple[float, int]:
    """The seconds until the first line about the fault, and the number of its lines (1 for a warning)."""
    with _Start(fault, folders) as start:
        seen: list[_Line] = []
        for line in start.lines():
            seen.append(line)
            if _is_about(fault, line.text) and "WARNING" in line.text:
                return line.seconds, 1
    told = [line.seconds for line in seen if _is_about(fault, line.text)]
    return (told[0] if told else float("inf")), _num_lines_of_failure([line.text for line in seen])


def _num_lines_of_failure(lines: list[str]) -> int:
    """The number of lines since the first one about the failure, without lines that every start has."""
    others = [line for line in lines if line.strip() and not any(part in line for part in _OF_ANY_START)]
    return len(list(itertools.dropwhile(lambda line: not any(part in line for part in _OF_A_FAILURE), others)))


@pytest.mark.usefixtures("_recorded")
def test_faults_are_told_within_a_second(folders):
    told = {}
    for name, fault in _FAULTS.items():
        seconds, num_lines = told[name] = _told_at_once(fault, folders)
        print(f"{seconds:6.2f} s {num_lines:4} lines  {name}")
    missed = [name for name, (seconds, lines) in told.items() if seconds > _MOST_S or lines > _MOST_LINES]
    assert len(missed) <= (1 - _LEAST_SHARE) * len(told), missed


@pytest.mark.parametrize("name", _FAULTS)
def test_without_the_checks_vllm_refuses_the_start_in_few_lines(folders, name):
    with _Start(_FAULTS[name], folders, "--preflight", "off", "--enforce-eager") as start:
        lines = [line.text for line in start.lines()]
    num_lines = _num_lines_of_failure(lines)
    print(f"{num_lines:4} lines  {name}")
    assert start.process.returncode in _REFUSED
    assert num_lines <= _MOST_LINES_LATER, "\n".join(lines)
