"""`bench startup` starts servers in turn from each state of the caches, and times exec to the first token."""

import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from vllm_cli.bench.phases import describe_phases, divide, ends_of_spans, follow_log
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.report import Figures, Metric, Result, Side, percentiles_ms
from vllm_cli.bench.standby import NO_STANDBY, BenchStandby, split_own_command
from vllm_cli.bench.target import (
    BenchConfig,
    ReadyServer,
    Target,
    TargetSpec,
    TargetStartError,
    ask_until_answered,
    describe,
    time_limit,
    wait_until_ready,
)
from vllm_cli.supervised_command import CommandEndedError
from vllm_cli.terminal import Reporter

_CONNECT_POLL_S: Final = 0.005
_HEALTH_POLL_S: Final = 0.02
_ANSWER_S: Final = 60.0
STARTUP_METRICS: Final = (
    Metric("listening_ms", "listening ms"),
    Metric("healthy_s", "healthy s"),
    Metric("first_token_s", "first token s"),
    *(Metric(f"probe_{which}_ms", f"probe {which} ms") for which in ("p50", "p99", "max")),
    Metric("num_refused", "probes refused", is_compared=False),
    Metric("num_lost", "probes lost later", is_compared=False),
)
_FORK_SPAN: Final = "fork_from_standby"
"""A span of /startupz that only a warm start has."""


@dataclass(frozen=True, kw_only=True)
class StartupBenchConfig(BenchConfig):
    """The commands to start, and the states of the caches before a start."""

    states: tuple[str, ...]
    """`warm`: caches stay. `standby`: as `warm`, forked by a standby."""
    standby_model: str | None = None
    pause_s: float = 1.0
    """Seconds between the end of one server and the start of the next server."""
    shows_phases: bool = False


def measure_startup(config: StartupBenchConfig) -> Result:
    """Starts all sides in each round. Every other round is in reverse, so that the order favours no side."""
    with ExitStack() as stack:
        reporter = stack.enter_context(closing(Reporter()))
        sides = [stack.enter_context(closing(_StartedSide(spec, config))) for spec in config.targets]
        for side in sides:
            reporter.note(f"{side.spec.name}: one start that does not count: {describe(side.spec)}")
            side.prepare()
        for number in range(config.num_rounds):
            for state in config.states:
                for side in sides[:: -1 if number % 2 else 1]:
                    text = f"{side.spec.name}: from {state}, round {number + 1} of {config.num_rounds}"
                    reporter.update(text, text)
                    time.sleep(config.pause_s)
                    side.rounds[f"from {state}"].append(side.measure(state))
        measured = [side.build_side() for side in sides]
    return Result(
        benchmark="startup",
        metrics=STARTUP_METRICS,
        settings=config.settings,
        description=[f"{config.path}; times count from exec"],
        sides=measured,
        details=describe_phases(measured) if config.shows_phases else {},
        problems=[line for side in measured for line in _find_problems(side)],
    )


class _StartedSide:
    """A command that is started once per measurement, each time on a new port, and stopped afterwards."""

    def __init__(self, spec: TargetSpec, config: StartupBenchConfig) -> None:
        self.spec = spec
        self.rounds: defaultdict[str, list[Figures]] = defaultdict(list)
        self._config = config
        self._standby: BenchStandby | None = None
        self._server: ReadyServer
        """Model, version and request format, as `prepare` has found them."""

    def prepare(self) -> None:
        """Starts the server without measuring, to check the command, warm caches and find the request format.

        Then starts the standby, which imports the modules that this start has recorded. The standby's first
        fork is not measured either.
        """
        with self._started(NO_STANDBY) as target:
            target.start()
            self._server = wait_until_ready(target, self._config)
        if "standby" in self._config.states and split_own_command(self.spec.command)[0]:
            self._standby = BenchStandby(self.spec.command, self._config.standby_model)
            self._standby.start(self._config.ready_timeout_s)
            self.measure("standby")

    def measure(self, state: str) -> dict[str, Any]:
        """Measures one start, and waits until all its processes have exited."""
        environment = self._standby.environment if self._standby and state == "standby" else NO_STANDBY
        with HealthProbe() as probe, self._started(environment) as target, time_limit(target, self._config):
            return self._time_start(target, probe)

    def build_side(self) -> Side:
        """The figures of this side, once all starts are measured."""
        facts, note = {}, ""
        if self._standby is not None:
            facts["standby"] = standby = self._standby.measure()
            note = f"; standby: {standby['memory_bytes'] / 1e6:.0f} MB (PSS), imports {standby['import_s']:.1f} s"
        return Side(
            name=self.spec.name,
            target=describe(self.spec),
            model=self._server.model,
            version=self._server.version,
            rounds=self.rounds,
            note=note,
            facts=facts,
        )

    def close(self) -> None:
        if self._standby is not None:
            self._standby.close()

    @contextmanager
    def _started(self, environment: dict[str, str]) -> Iterator[Target]:
        """Yields a server to start. Then stops the server."""
        with closing(Target(self.spec, environment)) as target:
            try:
                yield target
            except (CommandEndedError, TargetStartError) as err:
                text = err.message if "\n" in err.message else f"{err.message}\n{target.log_tail}".rstrip()
                raise TargetStartError(text) from None

    def _time_start(self, target: Target, probe: HealthProbe) -> dict[str, Any]:
        target.start()
        host, _, port = target.base_url.removeprefix("http://").partition(":")
        with follow_log(target.log_path) as log:
            probe.start(target.base_url)
            listening_ns, healthy_ns = _wait_healthy(host, int(port), target.ensure_alive)
            server = replace(self._server, base_url=target.base_url)
            if (first_token_ns := ask_until_answered(server.find_first_text, target)) is None:
                raise TargetStartError(f"{server.base_url}{server.path} gives no text: its answer was empty")
        samples = probe.finish()
        spans_end_s = server.ask_spans()
        exec_ns, ends_ns = target.begin_ns, log.ends_ns | {"server": healthy_ns or listening_ns}
        observed_s = {name: (end_ns - exec_ns) / 1e9 for name, end_ns in ends_ns.items()}
        ends_s = ends_of_spans(spans_end_s) | observed_s
        first_token_s = (first_token_ns - exec_ns) / 1e9
        return {
            "listening_ms": (listening_ns - exec_ns) / 1e6,
            "healthy_s": (healthy_ns - exec_ns) / 1e9 if healthy_ns else None,
            "first_token_s": first_token_s,
            **percentiles_ms("probe", samples.latencies_ns, 50, 99, 100),
            "num_probes": len(samples.latencies_ns),
            "num_refused": samples.num_refused,
            "num_lost": samples.num_lost,
            "spans_end_s": spans_end_s,
            "phases_s": divide(ends_s, first_token_s),
        }


def _wait_healthy(host: str, port: int, ensure_alive: Callable[[], None]) -> tuple[int, int | None]:
    """The moments of the first accepted connection and of the first 200 from `/health`.

    The second is None if the server has no such route. Uses plain sockets, because polls compete with the
    start for cores.
    """
    request = f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    listening_ns, received = 0, b""
    while True:
        with suppress(OSError), socket.create_connection((host, port), _ANSWER_S) as client:
            listening_ns = listening_ns or time.monotonic_ns()
            client.sendall(request)
            received = client.recv(1 << 16)
        if received.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            return listening_ns, time.monotonic_ns()
        if received.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")):
            return listening_ns, None
        ensure_alive()
        time.sleep(_HEALTH_POLL_S if listening_ns else _CONNECT_POLL_S)


def _find_problems(side: Side) -> Iterator[str]:
    """Yields problems: starts that were unexpectedly warm or cold."""
    for condition, rounds in side.rounds.items():
        where = f"{side.name}, {condition}"
        known = [spans for figures in rounds if (spans := figures["spans_end_s"])]  # other servers report none
        num_warm = sum(any(name.endswith(_FORK_SPAN) for name in spans) for spans in known)
        wanted = len(known) if "standby" in side.facts and condition == "from standby" else 0
        if num_warm != wanted:
            yield f"{where}: {num_warm} of {len(known)} servers were forked from a standby, not {wanted}"
