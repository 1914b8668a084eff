"""Runs `vllm-cli serve` as a process, and finds its processes by their roles."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import psutil

from tests.support.cli import CLI
from tests.support.http_client import openai_client
from tests.support.ports import free_port
from tests.support.program import Server
from tests.support.waiting import has_death_pipe, wait_until


class ServerProcess(Server):
    """`vllm-cli serve` on a free port. At the end, no process is left, and the log has no traceback."""

    may_log_tracebacks = False
    """True in tests of failures for which the log shows an exception of a library."""

    def __init__(
        self,
        arguments: list[str],
        *,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """`launcher` has the arguments of a command that executes the arguments after it."""
        self.port = free_port()
        command = [*launcher, *CLI, "serve", "--host", "127.0.0.1", "--port", self.port, *arguments]
        super().__init__(command, {**os.environ, **(environment or {})}, is_awaited=wait)

    def __exit__(self, error: type[BaseException] | None, *others: object) -> None:
        super().__exit__(error, *others)
        assert error or self.may_log_tracebacks or "Traceback" not in self.log, self.log[-8000:]

    def serving_process(self) -> psutil.Process:
        """The API process: the started process, or in a warm start the fork of a template process."""
        if self.variables.get("VCLI_STANDBY") != "require":
            return self.root
        try:
            arguments = self.root.cmdline()
        except psutil.NoSuchProcess:  # it has ended
            return self.root
        same = {each.pid: each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == arguments}
        forked = [each for each in same.values() if each != self.root and _parent(each) not in same]
        return forked[0] if forked else self.root

    def roots(self) -> list[psutil.Process]:
        """The started process and the API process."""
        return list(dict.fromkeys([self.root, self.serving_process()]))

    def wait_listening(self) -> None:
        """Waits for the first response to a probe."""
        wait_until(self.health)

    def wait_unready(self) -> None:
        """Waits until /health is 503."""
        wait_until(lambda: self.health() == 503)

    def wait_load(self, num_requests: int) -> None:
        """Waits until `/load` reports this number of requests."""
        wait_until(lambda: self.ask("/load").json["server_load"] == num_requests)

    def phase(self) -> str | None:
        """The phase in the body of /health. None once the server is ready."""
        answer = self.ask("/health")
        return None if answer.status in (0, 200) else answer.json.get("phase")

    def openai(self):
        """The `openai` client for this server, as a context manager."""
        return openai_client(self.url)

    def complete(self, *, max_tokens: int) -> int:
        """Requests a completion and returns the status."""
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True}
        return self.ask("/v1/completions", body).status

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        values = [float(line.rpartition(" ")[2]) for line in samples if all(label in line for label in wanted)]
        assert values, f"no metric {name}"
        return sum(values)


def _parent(process: psutil.Process) -> int:
    """The process id of the parent. 0 once the process has ended."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


Role = Literal["api", "engine", "forkserver", "resource_tracker", "responder", "prefetch"]
Answer = TypeVar("Answer")


def find_process(server: ServerProcess, role: Role) -> psutil.Process | None:
    """The process of the role, or None. A responder is found once it has its death pipe.

    The server of a warm start must be ready. Before that, its forkserver has no name, and its responder has
    torch.
    """
    api = server.serving_process()
    front = set() if api == server.root else {server.root}
    for process in (each for each in server.family() if each not in front):
        with suppress(psutil.NoSuchProcess):
            if role in _roles(api, process):
                return process
    return None


def count_roles(server: ServerProcess) -> Counter[Role]:
    """The number of processes of each role in a cold start."""
    return Counter(
        role for roles in for_each_process(server, lambda process: [*_roles(server.root, process)]) for role in roles
    )


def wait_process(server: ServerProcess, role: Role) -> psutil.Process:
    found: list[psutil.Process] = []

    def is_found() -> bool:
        process = find_process(server, role)
        found.extend([process] if process is not None else [])
        return bool(found)

    wait_until(is_found)
    return found[0]


def for_each_process(server: ServerProcess, question: Callable[[psutil.Process], Answer]) -> list[Answer]:
    """The answers for all processes. Processes that exit meanwhile, such as helpers, have no answer."""
    answers = []
    for process in server.family():
        with suppress(psutil.NoSuchProcess):
            answers.append(question(process))
    return answers


def _roles(api: psutil.Process, process: psutil.Process) -> Iterator[Role]:
    arguments = " ".join(process.cmdline())
    if process == api:
        yield "api"
    elif process.ppid() != api.pid or "multiprocessing.spawn import" in arguments:
        yield "engine"  # forked by the forkserver, or spawned
    elif "resource_tracker import" in arguments:
        yield "resource_tracker"
    elif "forkserver import" in arguments:
        yield "forkserver"
    elif "prefetch.worker" in arguments:
        yield "prefetch"
    elif has_death_pipe(process):  # without one it may be about to execute another program
        yield "engine" if _has_torch(process) else "responder"


def _has_torch(process: psutil.Process) -> bool:
    """Whether torch is loaded, as in a forked engine. The responder is forked before any heavy import."""
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    return False
