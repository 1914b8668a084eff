"""Runs `vllm-cli standby` as a process with its own sockets."""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.program import Program
from tests.support.waiting import is_gone, wait_until

OFF: Final = {"VCLI_STANDBY": "off"}
"""Variables of all tests, so that their starts are cold even if a standby of this user runs."""


class StandbyProcess(Program):
    """A standby whose imports are done. The end of the `with` block stops it and checks for leftovers.

    The sockets are in a folder of `/tmp`, because a socket's path may have at most 107 bytes.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        is_awaited: bool = True,
        python: Path | str = sys.executable,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            arguments: options of `vllm-cli standby`. Without `--for`, the template is the embedded engine's.
            environment: variables in addition to those of the test.
            is_awaited: whether the `with` block begins only once the imports are done.
            python: the interpreter. Servers must start it by the same path as the standby.
            launcher: the arguments of a command that starts the standby, such as `nice`.
        """
        self.runtime_folder = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))
        self.folder = self.runtime_folder / "vllm-cli"
        arguments = arguments if "--for" in arguments else ("--for", "embedded", *arguments)
        super().__init__(
            (*launcher, python, "-m", "vllm_cli", "standby", *arguments),
            {**os.environ, **(environment or {}), "XDG_RUNTIME_DIR": str(self.runtime_folder)},
            is_awaited=is_awaited,
            log_path=self.runtime_folder / "log",
            cwd=self.runtime_folder,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a start fails unless the standby forks the server."""
        return {"XDG_RUNTIME_DIR": str(self.runtime_folder), "VCLI_STANDBY": "require"}

    def socket_path(self, name: str = "embedded") -> Path:
        """The socket of a template, or of the standby itself if the name is `standby`."""
        (path,) = self.folder.glob(f"*-{name}.sock")
        return path

    def status(self) -> dict[str, Any]:
        """The data that `standby status --json` shows. Does not start this command."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(60)
            connection.connect(str(self.socket_path("standby")))
            connection.send(b"status")
            return json.loads(connection.recv(1 << 18))

    def template(self, kind: str = "embedded") -> psutil.Process:
        (template,) = [each for each in self.status()["templates"] if each["kind"] == kind]
        return psutil.Process(template["pid"])

    def servers(self) -> list[psutil.Process]:
        """The running processes that the template has forked."""
        return [process for process in self.template().children() if not is_gone(process.pid)]

    def wait_engine(self) -> psutil.Process:
        """Waits for the engine process of the only server, which is the child of the server's forkserver."""
        found: list[psutil.Process] = []

        def is_found() -> bool:
            helpers = [helper for server in self.servers() for helper in server.children()]
            with suppress(psutil.NoSuchProcess):  # a helper, such as the prefetch, has just exited
                found[:] = [child for helper in helpers for child in helper.children() if not is_gone(child.pid)]
            return bool(found)

        wait_until(is_found)
        return found[0]

    def wait_no_server(self) -> None:
        """Waits until all forked processes and their children have ended and the template has reaped them."""
        template = self.template()
        wait_until(lambda: not template.children(recursive=True))

    def templates(self) -> list[psutil.Process]:
        found = []
        for template in self.status()["templates"]:
            with suppress(psutil.NoSuchProcess):  # the standby does not know yet that it has exited
                found += [psutil.Process(template["pid"])] if template["pid"] else []
        return found

    def num_starts(self) -> int:
        return sum(template["num_starts"] for template in self.status()["templates"])

    def wait_ready(self, *, after_kill: bool = False) -> None:
        """Waits until all templates have finished their imports. A killed template restarts after 1 s."""

        def is_ready() -> bool:
            try:
                states = [template["state"] for template in self.status()["templates"]]
            except (OSError, ValueError):  # no socket yet
                return False
            assert after_kill or "failed" not in states, self.log
            return set(states) == {"ready"}

        self.wait(is_ready)

    def stop(self) -> list[psutil.Process]:
        left = super().stop()
        shutil.rmtree(self.runtime_folder)
        return left
