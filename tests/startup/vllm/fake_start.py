"""Starts `vllm-cli serve --engine vllm` with the fake vLLM, reads its processes' state, and stops it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil

from envs.registry import OWN_PREFIX, variables
from tests.ports import free_port
from tests.waiting import is_gone, wait_until

FAKE = Path(__file__).with_name("fake")
ROOT = Path(__file__).parents[3]
NO_HUB = "http://127.0.0.1:9"
"""Refuses connections: the models of these tests are nowhere, and the fake vLLM reads none."""
_FORKSERVER = "multiprocessing.forkserver"


def command(*words: str) -> list[str]:
    """The command line of `serve`, without a prefetch."""
    return [sys.executable, "-m", "vllm_cli", "serve", "--engine", "vllm", "--prefetch", "off", *words]


def environment(folder: Path, fake: Path | None = FAKE, **changes: str | None) -> dict[str, str]:
    """This process's environment without vllm-cli's settings; caches are in `folder`."""
    ours = {variable.name for variable in variables()}
    kept = {n: v for n, v in os.environ.items() if n not in ours and not n.startswith(OWN_PREFIX)}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    own = {"VLLM_CACHE_ROOT": str(folder / "cache"), "TMPDIR": str(folder), "HF_ENDPOINT": NO_HUB}
    path = {"PYTHONPATH": f"{fake}:{ROOT}" if fake else str(ROOT)}
    return {n: v for n, v in {**kept, **own, **path, **changes}.items() if v is not None}


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a path short enough for a Unix socket in it."""
    with tempfile.TemporaryDirectory(prefix="fv", dir="/tmp") as name:
        yield Path(name)


def variant(folder: Path, **files: str | None) -> Path:
    """A copy of the fake vLLM; `files` are modules' contents by name, `__` for dots; None removes one."""
    copy = folder / "fake"
    shutil.copytree(FAKE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in files.items():
        path = copy / "vllm" / f"{name.replace('__', '/')}.py"
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
    return copy


def prepend(fake: Path, name: str, code: str) -> Path:
    """Puts code before that of a module in a copy, which is named with slashes."""
    path = fake / "vllm" / f"{name}.py"
    path.write_text(code + path.read_text())
    return fake


def without_forks(folder: Path, version: str) -> Path:
    """A copy of this version whose workers fail if they are forked."""
    fake = variant(folder, _version=f'__version__ = version = "{version}"\n')
    refuses = "assert b'multiprocessing.spawn' in open('/proc/self/cmdline', 'rb').read()"
    return rewrite(fake, '        set_process_title(f"Worker', f'        {refuses}\n        set_process_title(f"Worker')


def rewrite(fake: Path, old: str, new: str) -> Path:
    """Replaces a text in every module of a copy."""
    for path in fake.rglob("*.py"):
        path.write_text(path.read_text().replace(old, new))
    return fake


class FakeStart:
    """One launcher with all its processes; the `with` block checks that none of them is left."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        env: Mapping[str, str] | None = None,
        host: str | None = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        """Without a host, the address comes from `words`."""
        self.port = free_port() if port is None else port
        self.log = folder / f"log-{self.port}"
        address = ("--host", host, "--port", str(self.port)) if host else ()
        self._words = command(*words, *address)
        self._environment = environment(folder) if env is None else env
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._words, stdout=log, stderr=subprocess.STDOUT, env=self._environment, cwd=ROOT, process_group=0
            )
        self.launcher = psutil.Process(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.record_tree()
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self.record_tree()
            self._await_end_of_all()

    def _await_end_of_all(self) -> None:
        try:
            self.wait_until_tree_is_gone()
        finally:
            for process in self._seen:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def wait_until_tree_is_gone(self) -> None:
        """Waits until all processes have exited that `record_tree` has recorded."""
        wait_until(lambda: not self.left())

    def left(self) -> list[psutil.Process]:
        """Recorded processes that have not exited."""
        return [process for process in self._seen if process.is_running() and not is_gone(process.pid)]

    def kind_of(self, pid: int) -> str:
        """The start method by which a process was started."""
        process = psutil.Process(pid)
        if any("multiprocessing.spawn" in word for word in process.cmdline()):
            return "spawn"
        return "forkserver" if _is_forkserver(process) else "fork"

    @property
    def text(self) -> str:
        """The log of all its processes."""
        return self.log.read_text()

    def lines_with(self, *words: str) -> list[str]:
        """Lines of the log that contain one of the words."""
        return [line for line in self.text.splitlines() if any(word in line for word in words)]

    def record_tree(self) -> list[psutil.Process]:
        """Records and returns the launcher's descendants; all of them must have exited at the end."""
        try:
            tree = self.launcher.children(recursive=True)
        except psutil.NoSuchProcess:
            tree = []
        self._seen.update(tree)
        return tree

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body; raises OSError without an answer."""
        return get(self.port, path)

    def wait_until_ready(self) -> Self:
        """Waits until vLLM itself answers."""
        return self.wait_until_answered(200)

    def wait_until_answered(self, status: int) -> Self:
        """Waits until /health has this status."""

        def is_answered() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{self.text}"
            with suppress(OSError):
                return self.get("/health")[0] == status
            return False

        wait_until(is_answered)
        self.record_tree()
        return self

    def wait_for_line(self, text: str) -> None:
        """Waits until the log contains the text."""
        wait_until(lambda: text in self.text or self.process.poll() is not None)
        assert text in self.text, self.text

    def state(self) -> dict[str, Any]:
        """The state that `server`, `engine` and `workers` report."""
        self.record_tree()
        return json.loads(self.get("/state")[1])

    def complete(self, prompt: str) -> str:
        body = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", data=body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["choices"][0]["text"]

    def forkservers(self) -> list[psutil.Process]:
        """The forkservers, without the processes forked from them."""
        found = []
        for process in [self.launcher, *self.launcher.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if _is_forkserver(process) and not _is_forkserver(psutil.Process(process.ppid())):
                    found.append(process)
        return found

    def responders(self) -> list[psutil.Process]:
        """The launcher's forks that answer probes instead of vLLM."""
        words = self.launcher.cmdline()
        return [process for process in self.launcher.children() if _words(process) == words]

    def titles(self) -> set[str]:
        """Names of the running processes."""
        return {_name(process) for process in self.record_tree()}

    def named(self, title: str) -> psutil.Process:
        """Waits for the process with this title."""

        def find() -> list[psutil.Process]:
            return [process for process in self.record_tree() if _name(process) == title]

        wait_until(lambda: find() or self.process.poll() is not None)
        (process,) = find()
        return process

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal to the launcher and returns its exit code."""
        self.record_tree()
        self.process.send_signal(number)
        return self.process.wait(60)


def run_fake(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command line until it exits."""
    return subprocess.run(
        command(*words),
        env=environment(folder) if env is None else env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a request on a new connection, read until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        return exchange(client, path)


def exchange(client: socket.socket, path: str) -> tuple[int, bytes]:
    """Sends a request on a connection; raises OSError if it closes without an answer."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    received = b""
    while chunk := client.recv(1 << 16):
        received += chunk
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        raise OSError(f"incomplete answer: {received!r}")
    return int(head.split()[1]), body


def _is_forkserver(process: psutil.Process) -> bool:
    return any(_FORKSERVER in word for word in _words(process))


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
