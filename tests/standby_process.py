"""`vllm-cli standby` as a process, with sockets of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil

from tests.processes import end_server
from tests.waiting import is_gone, wait_until

OFF: Final = {"VCLI_STANDBY": "off"}
"""The environment of all tests: their starts are cold even if a standby of this user runs."""


class StandbyProcess:
    """A standby whose imports are done; the end of the `with` block stops it and checks for leftovers.

    Its sockets are in a short folder of `/tmp`, not in the test's: their paths may have 107 bytes.
    """

    def __init__(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        is_awaited: bool = True,
        python: Path | str = sys.executable,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            words: options of `vllm-cli standby`; the template of the embedded engine without `--for`.
            environment: variables added to those of the test.
            is_awaited: whether the `with` block begins only once the imports are done.
            python: the interpreter; its start and that of the servers must be the same.
            launcher: a command that starts it, as `nice`.
        """
        self.runtime_folder = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))
        self.folder = self.runtime_folder / "vllm-cli"
        self._words = words if "--for" in words else ("--for", "embedded", *words)
        self._environment = {**os.environ, **(environment or {}), "XDG_RUNTIME_DIR": str(self.runtime_folder)}
        self._is_awaited = is_awaited
        self._command = (*launcher, str(python), "-m", "vllm_cli", "standby", *self._words)
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Starts the process; also another one in the folder of one that was killed."""
        with (self.runtime_folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.runtime_folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            if self._is_awaited:
                self.wait_ready()
        except BaseException:
            self._end()
            raise

    def __exit__(self, *_: object) -> None:
        left = self._end()
        assert not left, f"left behind: {left}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a start must be warm."""
        return {"XDG_RUNTIME_DIR": str(self.runtime_folder), "VCLI_STANDBY": "require"}

    @property
    def log(self) -> str:
        """What standby and template processes have written."""
        return (self.runtime_folder / "log").read_text(errors="replace")

    def socket_path(self, name: str = "embedded") -> Path:
        """The socket of a template, or of the standby itself (`standby`)."""
        (path,) = self.folder.glob(f"*-{name}.sock")
        return path

    def status(self) -> dict[str, Any]:
        """What `standby status --json` shows, asked without starting that command."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(60)
            connection.connect(str(self.socket_path("standby")))
            connection.send(b"status")
            answer: dict[str, Any] = json.loads(connection.recv(1 << 18))
            return answer

    def template(self, kind: str = "embedded") -> psutil.Process:
        """The running template process."""
        (pid,) = [template["pid"] for template in self.status()["templates"] if template["kind"] == kind]
        return psutil.Process(pid)

    def servers(self, kind: str = "embedded") -> list[psutil.Process]:
        """The processes that the template has forked and that run."""
        return [process for process in self.template(kind).children() if not is_gone(process.pid)]

    def wait_engine(self) -> psutil.Process:
        """Waits for the engine process of the only server: its forkserver's child."""
        found: list[psutil.Process] = []

        def is_found() -> bool:
            helpers = [helper for server in self.servers() for helper in server.children()]
            with suppress(psutil.NoSuchProcess):  # a helper, such as the prefetch, has just exited
                found[:] = [child for helper in helpers for child in helper.children() if not is_gone(child.pid)]
            return bool(found)

        wait_until(is_found)
        return found[0]

    def wait_no_server(self) -> None:
        """Waits until all forked processes and their children have exited."""
        template = self.template()
        wait_until(lambda: all(is_gone(process.pid) for process in template.children(recursive=True)))

    def templates(self) -> list[psutil.Process]:
        """All running template processes."""
        return [psutil.Process(template["pid"]) for template in self.status()["templates"] if template["pid"]]

    def num_starts(self) -> int:
        """How many servers were forked."""
        return sum(template["num_starts"] for template in self.status()["templates"])

    def wait_ready(self, *, after_kill: bool = False) -> None:
        """Waits until all templates have finished their imports; a killed one is started again in 1 s."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            try:
                states = [template["state"] for template in self.status()["templates"]]
            except (OSError, ValueError):  # no socket yet
                return False
            assert after_kill or "failed" not in states, self.log
            return set(states) == {"ready"}

        wait_until(is_ready, 240)

    def family(self) -> list[psutil.Process]:
        """The standby, its templates and their servers."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def _end(self) -> list[psutil.Process]:
        family = self.family() if self.process.poll() is None else []
        left = end_server(self.process, family)
        shutil.rmtree(self.runtime_folder)
        return left
