"""Replicas behind haproxy are replaced as Kubernetes does it, while clients send requests."""

import itertools
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.containers.podman import Container, podman
from tests.support.debian_tools import require_tool
from tests.support.http_client import RawClient
from tests.support.openai_client import judge
from tests.support.ports import free_port
from tests.support.program import Program

_LAG_S: Final = 1.0
"""The time from the end of a pod, which begins with its preStop hook, until no new request reaches it."""
_LEAST_S: Final = 2.0
"""The kubelet's time between SIGTERM and SIGKILL if the hook has used up the grace period."""
_READY_S: Final = 1200.0
_CONFIGURATION: Final = """
global
  stats socket {folder}/haproxy.sock mode 600 level admin
defaults
  mode http
  retries 0
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  timeout check 2s
listen replicas
  bind 127.0.0.1:{port}
  option httpchk GET {probe}
  default-server check inter 5s fall 2 rise 1 disabled
"""
"""The checks are the readiness probes of deploy/kubernetes. Nothing is sent twice, as with a Service."""


class Balancer(Program):
    """haproxy with a backend for each of some ports. `probe` is a path. No backend gets requests at first."""

    def __init__(self, folder: Path, ports: Sequence[int], probe: str) -> None:
        self.port = free_port()
        self.ports = ports
        self._socket = folder / "haproxy.sock"
        replicas = "".join(f"  server {port} 127.0.0.1:{port}\n" for port in ports)
        text = _CONFIGURATION.format(folder=folder, port=self.port, probe=probe)
        (folder / "haproxy.cfg").write_text(text + replicas)
        super().__init__([require_tool("haproxy"), "-db", "-f", folder / "haproxy.cfg"], {}, is_awaited=True)

    def wait_ready(self) -> None:
        self.wait(self._socket.exists)

    def set_state(self, port: int, state: str) -> None:
        """`ready`, or `maint`: the backend gets no more requests, but may finish those that it has."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            connection.sendall(f"set server replicas/{port} state {state}\n".encode())
            assert connection.recv(4096).strip() == b""


class Result(NamedTuple):
    """How a request ended, as `judge` says it."""

    ending: str
    end_s: float
    took_s: float
    detail: str


class Load:
    """Sends requests at a rate on new connections, half of them streams. Every fiftieth has 800 tokens."""

    def __init__(self, port: int, rate: float) -> None:
        """`rate` is the number of requests a second."""
        self._port = port
        self._period_s = 1 / rate
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(200)
        self._clock = threading.Thread(target=self._run)
        self.results: list[Result] = []

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._clock.join()
        self._pool.shutdown()

    def _run(self) -> None:
        begin_s = time.monotonic()
        for number in itertools.count():
            if self._is_over.wait(max(0, begin_s + number * self._period_s - time.monotonic())):
                return
            self.send(12 if number % 50 else 800, is_stream=number % 2 == 0)

    def send(self, num_tokens: int, *, is_stream: bool = True) -> None:
        """Sends a request in a thread."""
        self._pool.submit(self._send, num_tokens, is_stream)

    def _send(self, num_tokens: int, is_stream: bool) -> None:
        body = {"prompt": "Once", "max_tokens": num_tokens, "ignore_eos": True, "stream": is_stream, "temperature": 0}
        begin_s = time.monotonic()
        try:
            with RawClient(self._port) as client:
                answer = client.post("/v1/completions", body, connection="close").read()
            ending, detail = judge(answer, is_stream=is_stream), f"{answer.status} {answer.body[-200:]!r}"
        except OSError as err:
            ending, detail = "lost", repr(err)[-300:]
        end_s = time.monotonic()
        self.results.append(Result(ending, end_s, end_s - begin_s, detail))

    @property
    def endings(self) -> Counter[str]:
        return Counter(result.ending for result in self.results)

    def report(self) -> str:
        """The figures of a run, and the first requests that were not answered."""
        answered = sorted((result.end_s, result.took_s) for result in self.results if result.ending == "answered")
        gap_s = max(after - before for (before, _), (after, _) in itertools.pairwise(answered))
        others = [(result.ending, result.detail) for result in self.results if result.ending != "answered"]
        longest_s = max(took_s for _, took_s in answered)
        counts = f"{dict(self.endings)}; longest answer {longest_s:.1f} s"
        return f"{counts}; longest time without an answer {gap_s:.2f} s; {others[:5]}"


class Deployment:
    """Containers that get requests once they are ready. A new one is ready before an old one is stopped."""

    def __init__(
        self, balancer: Balancer, create: Callable[[int], Container], *, hook_s: float, grace_s: float
    ) -> None:
        """
        Args:
            balancer: has one port more than there are replicas.
            create: makes the container for a port.
            hook_s: the duration of the preStop hook.
            grace_s: terminationGracePeriodSeconds.
        """
        self._balancer = balancer
        self._free = deque(balancer.ports)
        self._create = create
        self._hook_s = hook_s
        self._grace_s = grace_s
        self.replicas: deque[Container] = deque()
        self.exit_codes: list[int] = []
        self.ready_s: list[float] = []  # how long each replica took until it was ready
        self.removed_s = 0.0
        """When a replica was last taken out of service."""

    def __enter__(self) -> Self:
        for _ in self._balancer.ports[1:]:
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            replica.stop()

    def add(self) -> None:
        """Starts a replica. Once it is ready, it gets requests."""
        replica = self._create(self._free.popleft())
        begin_s = time.monotonic()
        replica.start()
        self.replicas.append(replica)
        replica.wait(lambda: replica.health() == 200, _READY_S)
        self.ready_s.append(round(time.monotonic() - begin_s, 1))
        self._balancer.set_state(replica.port, "ready")

    def retire(self) -> None:
        """Ends the oldest replica: the hook, SIGTERM, and SIGKILL after the grace period."""
        kill_s = max(self._grace_s, self._hook_s + _LEAST_S)
        self._end((_LAG_S, "maint"), (self._hook_s, "TERM"), (kill_s, "KILL"))

    def crash(self) -> None:
        """Kills the oldest replica, and adds a replica."""
        self._end((0, "KILL"), (_LAG_S, "maint"))
        self.add()

    def _end(self, *events: tuple[float, str]) -> None:
        """Sends signals to the oldest replica, and takes it out of service, each in time."""
        replica = self.replicas.popleft()
        begin_s = time.monotonic()
        for due_s, event in sorted(events):
            while time.monotonic() < begin_s + due_s and (event == "maint" or replica.process.poll() is None):
                time.sleep(0.02)
            if event == "maint":
                self._balancer.set_state(replica.port, event)
                self.removed_s = time.monotonic()
            else:
                podman("kill", f"--signal={event}", replica.name, check=False)
        self.exit_codes.append(replica.process.wait())
        replica.stop()
        self._free.append(replica.port)

    def replace_all(self) -> None:
        """Replaces each replica."""
        for _ in self._balancer.ports[1:]:
            self.add()
            self.retire()
