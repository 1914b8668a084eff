"""Two replicas behind haproxy are replaced while requests arrive, with the times of the manifest."""

import itertools
import shutil
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import pytest

from tests.containers.podman import STAND_IN, Container, mount_of, podman
from tests.deploy.manifests import pod_of
from tests.support.http_client import RawClient, judge
from tests.support.marks import require_tool
from tests.support.peer_vllm import PYTHON
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

    def cut_before(self, drain_s: float) -> list[Result]:
        """The answers that broke off, although their server had not yet drained for so long."""
        return [one for one in self.results if one.ending == "failed" and one.took_s < drain_s]

    @property
    def endings(self) -> Counter[str]:
        return Counter(result.ending for result in self.results)

    def report(self) -> str:
        """The figures of a run, and the first requests that were not answered."""
        answered = sorted((result.end_s, result.took_s) for result in self.results if result.ending == "answered")
        gaps = (after - before for (before, _), (after, _) in itertools.pairwise(answered))
        others = [(one.ending, round(one.took_s, 1), one.detail) for one in self.results if one.ending != "answered"]
        longest_s = max((took_s for _, took_s in answered), default=0)
        counts = f"{dict(self.endings)}; longest answer {longest_s:.1f} s"
        return f"{counts}; longest time without an answer {max(gaps, default=0):.2f} s; {others[:5]}"


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
        for _ in self._balancer.ports[1:]:
            self.add()
            self.retire()


_REST_S = 3.0


class _Server(NamedTuple):
    """What is rolled out."""

    pod: str  # of the manifests: its times and its readiness probe are used
    image: str
    rate: float  # requests a second, which two cores serve beside a start
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def drain_s(self) -> float:
        return float(self.arguments[0].removeprefix("--shutdown-timeout="))


@pytest.fixture
def embedded(image: str) -> _Server:
    return _Server("embedded", image, rate=10, arguments=("--shutdown-timeout=25",))


@pytest.fixture
def vllm(vllm_image: str) -> _Server:
    """vLLM's attention for CPUs needs larger heads than the model has, so the weights are made in the start.

    In bfloat16, vLLM 0.32 crashes with these heads on an Intel Xeon with AMX (SIGILL).
    """
    arguments = (
        "--shutdown-timeout=45",
        "--enforce-eager",
        "--load-format=dummy",
        "--dtype=float32",
        '--hf-overrides={"head_dim": 32}',
    )
    variables = "HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1"
    options = (mount_of(PYTHON), "--shm-size=1g", *(f"--env={variable}" for variable in variables.split()))
    return _Server("vllm", vllm_image, rate=2, arguments=arguments, options=options)


@pytest.fixture
def plain_vllm(vllm: _Server) -> _Server:
    return vllm._replace(image=STAND_IN)


@pytest.fixture
def under_load(tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Starts a server's replicas, then the requests. `hook_s` and `grace_s` are the manifest's by default."""

    @contextmanager
    def under_load(server: _Server, **times: float) -> Iterator[tuple[Deployment, Load]]:
        spec = pod_of(server.pod)["spec"]
        [container] = spec["containers"]
        [_, hook_s] = container["lifecycle"]["preStop"]["exec"]["command"]
        times = {"hook_s": float(hook_s), "grace_s": spec["terminationGracePeriodSeconds"]} | times
        probe = container["readinessProbe"]["httpGet"]["path"]

        def create(port: int) -> Container:
            """A container whose model is a new copy, as a new revision is."""
            model = shutil.copytree(tiny_llama, tmp_path / f"{time.monotonic_ns()}")
            options = (f"--volume={model}:/model:ro", "--user=0", *server.options)
            arguments = ("/model", "--served-model-name=model", *server.arguments)
            return Container(server.image, *arguments, options=options, port=port)

        with (
            Balancer(tmp_path, [free_port() for _ in range(3)], probe) as balancer,
            Deployment(balancer, create, **times) as deployment,
            Load(balancer.port, request.config.getoption("--rate", None) or server.rate) as load,
        ):
            time.sleep(_REST_S)
            yield deployment, load
            time.sleep(_REST_S)

    return under_load


@pytest.mark.parametrize(("name", "num_rollouts"), [("embedded", 10), ("vllm", 1), ("plain_vllm", 1)])
def test_no_request_is_lost_with_the_times_of_the_manifest(name, num_rollouts, under_load, request):
    """Streams are whole, and no server answers that is not ready. What plain vLLM loses is only printed.

    On a busy machine, an answer may take longer than all the time that its server has to stop.
    """
    server = request.getfixturevalue(name)
    with under_load(server) as (deployment, load):
        for _ in range(request.config.getoption("--rollouts", None) or num_rollouts):
            deployment.replace_all()
            print(load.report(), f"seconds until ready: {deployment.ready_s}", flush=True)
    if name != "plain_vllm":
        assert set(load.endings) <= {"answered", "failed"}, load.report()
        assert load.cut_before(server.drain_s) == []
        assert set(deployment.exit_codes) == {0}


def test_without_the_hook_requests_are_rejected(embedded, under_load):
    """Until the load balancer knows that the pod ends. Some meet a port that is closed already."""
    with under_load(embedded, hook_s=0) as (deployment, load):
        deployment.replace_all()
    print(load.report())
    assert {*load.endings} - {"lost", "failed"} == {"answered", "rejected"}, load.report()
    assert load.cut_before(embedded.drain_s) == []


def test_a_killed_replica_loses_requests_only_until_the_balancer_knows(embedded, under_load):
    with under_load(embedded) as (deployment, load):
        deployment.crash()
    print(load.report())
    late = [result for result in load.results if result.end_s - result.took_s > deployment.removed_s]
    assert {result.ending for result in late} == {"answered"}, load.report()


def test_a_grace_period_that_is_too_short_cuts_streams(embedded, under_load):
    with under_load(embedded, grace_s=5) as (deployment, load):
        for _ in range(40):  # they last longer than both stops, even where four take 5 s
            load.send(4000)
        deployment.replace_all()
    print(load.report())
    assert 137 in deployment.exit_codes
    assert set(load.endings) == {"answered", "lost"}, load.report()
