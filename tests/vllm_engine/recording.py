"""Records a server's answers, log and process settings, for a comparison with another server."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.http_client import ask
from tests.support.waiting import wait_until
from tests.vllm_engine.process_observer import FOLDER_VARIABLE
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
    install_plugin(folder, "vllm.general_plugins", Path(__file__).with_name("process_observer.py"), "install")
    return {"PYTHONPATH": str(folder), FOLDER_VARIABLE: str(folder)}


def install_plugin(folder: Path, group: str, source: Path, function: str) -> None:
    """Creates a folder for PYTHONPATH. The source in it is a distribution with an entry point."""
    about = folder / f"{source.stem}-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {source.stem}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{source.stem} = {source.stem}:{function}\n")
    (folder / source.name).write_text(source.read_text())


def _read(path: Path) -> dict[str, Any]:
    wait_until(path.exists, 120.0)
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def first_status(server: VllmServer, path: str) -> tuple[int, Any]:
    """Waits for the first answer of a starting server. Returns its status and JSON body."""
    answer = ask(f"{server.url}{path}")
    deadline = time.monotonic() + 120
    while not answer.status:
        assert server.process.poll() is None, server.log
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)
        answer = ask(f"{server.url}{path}")
    return answer.status, answer.json
