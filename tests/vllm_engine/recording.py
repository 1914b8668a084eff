"""Records a server's answers, log and process settings, for a comparison with another server."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.http_client import Answer, ask
from tests.support.waiting import wait_until
from tests.vllm_engine import process_observer
from tests.vllm_engine.plugin import write_entry_point
from tests.vllm_engine.vllm_server import VllmServer, title_of

_OWN_NAMES: Final = ("APIServer", "EngineCore", "Worker")
_LINE: Final = re.compile(r"\(([\w-]+) pid=\d+\) (\w+) [\d-]+ [\d:]+ \[([\w.]+:\d+)\]")


@dataclass
class Recording:
    """The records of a server. Exit code and lines of the log are added after its end."""

    answers: dict[str, Any] = field(default_factory=dict)
    titles: set[str] = field(default_factory=set)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a process in multiprocessing -> its settings."""
    exit_code: int | None = None
    lines: set[tuple[str, str, str]] = field(default_factory=set)
    """For each log line before the shutdown: process, level, and place in vLLM's source."""
    log: str = ""


Questions = Callable[[VllmServer], dict[str, Any]]


def record(server: VllmServer, questions: Questions, *, observed: Path, end: int) -> Recording:
    """Sends the requests, records the processes' settings and stops the server with a signal."""
    server.wait_ready()
    recording = Recording(answers=questions(server))
    main = server.main_process()
    serving = [main, *(p for p in server.family() if p != main and title_of(p).startswith(_OWN_NAMES))]
    recording.titles = {title_of(process) for process in serving[1:]}
    for process in serving:
        process.send_signal(signal.SIGUSR2)
    for process in serving:
        settings = _read(observed / f"{process.pid}.json")
        recording.settings[settings["name"]] = settings
    recording.exit_code = server.terminate(end)
    recording.log = server.log
    recording.lines = set(_lines(recording.log))
    return recording


def _lines(log: str) -> Iterator[tuple[str, str, str]]:
    """Lines before the signal. After the signal, their order depends on a race of vLLM's processes."""
    for line in log.splitlines():
        if "[shutdown]" in line:
            return
        if match := _LINE.match(line):
            yield match[1], match[2], match[3]


def observing(folder: Path) -> dict[str, str]:
    """Variables for a server with the observer plugin, whose processes write settings into the folder."""
    folder.mkdir()
    write_entry_point(folder, process_observer)
    return {"PYTHONPATH": str(folder), process_observer.FOLDER_VARIABLE: str(folder)}


def _read(path: Path) -> dict[str, Any]:
    wait_until(path.exists, 120.0)
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def first_status(server: VllmServer, path: str) -> tuple[int, Any]:
    """Waits for the first answer of a starting server. Returns its status and JSON body."""
    answers: list[Answer] = []

    def has_answered() -> bool:
        assert server.process.poll() is None, server.log
        answers.append(ask(f"{server.url}{path}"))
        return answers[-1].status != 0

    wait_until(has_answered, 120.0)
    return answers[-1].status, answers[-1].json
