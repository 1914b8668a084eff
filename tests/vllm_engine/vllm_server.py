"""A server process of real vLLM: `vllm serve`, or `vllm-cli serve --engine vllm`, cold or warm."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from tests.http_answer import ask
from tests.peer_vllm import BIN, PYTHON, ROOT
from tests.ports import free_port
from tests.processes import end_server
from tests.standby_process import StandbyProcess
from tests.waiting import is_gone

_READY_S = 1200.0
_ANSWER_S = 600.0
_GONE_S = 120.0
_POLL_S = 0.2
"""Long, so that polling takes little CPU time from the start."""

_OURS: Final = (str(PYTHON), "-m", "vllm_cli", "serve", "--engine", "vllm")
LAUNCHERS: Final = {"plain": (str(PYTHON), str(BIN / "vllm"), "serve"), "ours": _OURS, "warm": _OURS}
"""`warm` is `ours` with a standby of its own, from which it must fork its server."""


class VllmServer:
    """A server on a free port; leaving the `with` block stops it and checks that all its processes end."""

    PROMPT: Final = "The capital of France is"
    MAX_TOKENS: Final = 4

    def __init__(
        self,
        launcher: str,
        model: Path,
        *arguments: str,
        folder: Path,
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """The folder contains the log and the caches; `prefix` executes the words that follow it."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = launcher
        words = (str(model), "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "model")
        self._command = [*prefix, *LAUNCHERS[launcher], *words, *arguments]
        extra = environment or {}
        self._environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            "VLLM_NO_USAGE_STATS": "1",
            **extra,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), extra.get("PYTHONPATH")))),
        }
        self._folder = folder
        self._path = folder / f"{launcher}-{self.port}.log"
        self._family: set[psutil.Process] = set()
        self._standby: StandbyProcess | None = None
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        if self.name == "warm":
            kind = "vllm-eager" if "--enforce-eager" in self._command else "vllm-compiled"
            self._standby = StandbyProcess("--for", kind, environment=self._environment, python=PYTHON)
            self._standby.__enter__()
            self._environment |= self._standby.environment
        with self._path.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                cwd=self._folder,
                process_group=0,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            left = self._end()
        finally:
            if self._standby is not None:
                self._standby.__exit__(None, None, None)
        assert not left or self.name == "plain", f"left behind: {left}"

    @property
    def log(self) -> str:
        """The output of all its processes so far."""
        return self._path.read_text(errors="replace")

    def wait_ready(self) -> Self:
        """Waits until /health is 200; fails with the log if the process exits first."""
        self.wait_status(200)
        return self

    def wait_status(self, status: int) -> None:
        """Waits until /health has this status."""
        self._wait(lambda: self.status("/health") == status)

    def wait_logged(self, words: str) -> None:
        """Waits until one of its processes has written the words."""
        self._wait(lambda: words in self.log)

    def _wait(self, is_true: Callable[[], object], timeout_s: float = _READY_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            self.family()
            assert self.process.poll() is None, self.log[-8000:]
            assert time.monotonic() < deadline, self.log[-8000:]
            time.sleep(_POLL_S)

    def family(self) -> list[psutil.Process]:
        """The server's process tree, recorded for the end, when some processes may have other parents.

        In a warm start it begins with the supervisor; the server is forked from the standby's template.
        """
        try:
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
            if self._standby is not None:
                family += [p for template in self._standby.templates() for p in template.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self._family.update(family)
        return family

    def main_process(self) -> psutil.Process:
        """vLLM's main process."""
        if self._standby is not None:
            (process,) = [process for template in self._standby.templates() for process in template.children()]
            return process
        return psutil.Process(self.process.pid)

    def titled(self, title: str) -> list[psutil.Process]:
        """Its processes whose title begins with this text, in order."""
        return sorted(
            (p for p in self.family() if title_of(p).startswith(title)), key=lambda process: title_of(process)
        )

    def status(self, path: str) -> int:
        """The status of an answer; 0 without an answer."""
        return ask(f"{self.url}{path}", timeout_s=_ANSWER_S).status

    def get(self, path: str) -> Any:
        """A JSON answer."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """An answer as text."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=_ANSWER_S) as response:
            return str(response.read(), "utf-8")

    def post(self, path: str, **body: Any) -> Any:
        """A JSON answer to a JSON request."""
        return json.loads(self._post(path, body))

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a streamed answer."""
        lines = self._post(path, {**body, "stream": True}).decode().splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(event) for event in data]

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        content = json.dumps({"model": "model", **body}).encode()
        request = urllib.request.Request(f"{self.url}{path}", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
            return bytes(response.read())

    def generate(self) -> str:
        """The text of a completion at temperature 0."""
        wanted = {"prompt": self.PROMPT, "max_tokens": self.MAX_TOKENS}
        answer = self.post("/v1/completions", **wanted, temperature=0, ignore_eos=True)
        return str(answer["choices"][0]["text"])

    def end_with(self, signal_number: int) -> int:
        """Sends a signal to the server; returns its exit code once all its processes have exited."""
        family = self.family()
        self.process.send_signal(signal_number)
        code = self.process.wait(_GONE_S)
        if self.name != "plain":
            psutil.wait_procs(family, _GONE_S)
            left = [title_of(process) for process in family if not is_gone(process.pid)]
            assert not left, f"left behind: {left}"
        return code

    def _end(self) -> list[psutil.Process]:
        self.family()
        return end_server(self.process, self._family, left_s=_GONE_S if self.name != "plain" else 10)


def title_of(process: psutil.Process) -> str:
    """The process's title without `VLLM::`, or its command line."""
    try:
        return " ".join(process.cmdline()).strip().removeprefix("VLLM::")
    except psutil.Error:
        return ""
