"""Times one start of a server: from exec until it listens, is healthy, and sends a token."""

import asyncio
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from envs.redaction import hide_in_command
from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.readiness import wait_until_ready
from vllm_cli.bench.request_format import RequestFormat
from vllm_cli.bench.startup.cold_download import HubStandIn
from vllm_cli.bench.startup.config import StartState, StartupBenchConfig
from vllm_cli.bench.startup.exec_stamp import ExecStamp
from vllm_cli.bench.startup.moments import (
    ask_first_text,
    ask_status,
    read_phases,
    wait_first_token,
    wait_healthy,
    wait_listening,
)
from vllm_cli.bench.startup.results import StandbyFigures, StartFigures, add_probes
from vllm_cli.bench.startup.roots import OverlayRoot
from vllm_cli.bench.startup.standby import NO_STANDBY, BenchStandby, OwnCommand
from vllm_cli.bench.target import CommandTarget, TargetStartError
from vllm_cli.errors import InputError
from vllm_cli.supervised_command import CommandEndedError

_NUM_EARLIER_STARTS: Final = 9
"""Before the first start from `tenth-root`."""


class ServerSide:
    """A command that starts a server; each start has a port of its own and ends with the server stopped."""

    def __init__(self, spec: TargetSpec, config: StartupBenchConfig) -> None:
        self.name = spec.name
        self.description = hide_in_command(spec.command or "")
        self.model = spec.model or ""
        self.version: str | None = None
        self.first_text: str | None = None
        self._spec = spec
        self._config = config
        self._request_format: RequestFormat | None = None
        self._running: BenchStandby | None = None
        self._used_root: OverlayRoot | None = None
        self._hub = HubStandIn(config.hub) if config.hub is not None else None
        self.standby: StandbyFigures | None = None

    async def prepare(self) -> None:
        """One start that is not measured: checks the command, warms caches, finds the request format.

        A standby is started after it, because a first start records what a template process imports; then
        its first fork is not measured either.
        """
        if "tenth-root" in self._config.states:
            self._used_root = OverlayRoot()
            for _ in range(_NUM_EARLIER_STARTS):
                await self._prepare_start("tenth-root")
        else:
            await self._prepare_start(self._first_state)
        if self._config.has_standby and (command := await OwnCommand.find(self._spec.command or "")) is not None:
            self._running = BenchStandby(
                command, model=self._config.standby_model, timeout_s=self._config.ready_timeout_s
            )
            await self._running.start()
            await self._prepare_start("standby")

    @property
    def _first_state(self) -> StartState:
        """The state of the start that is not measured: `warm`, if that is enough for the others."""
        if self._config.has_roots:
            return "fresh-root"
        return "cold-download" if self._config.states == ("cold-download",) else "warm"

    async def _prepare_start(self, state: StartState) -> None:
        with closing(ExecStamp()) as stamp, self._target(stamp, state) as target:
            target.start()
            try:
                async with asyncio.timeout(self._config.ready_timeout_s):
                    await self._check_model_list(target)
                ready = await wait_until_ready(target, self._config)
            except (CommandEndedError, TargetStartError) as error:
                raise TargetStartError(self._explain(error.message, target, stamp)) from error
            except TimeoutError:
                raise self._not_ready(target, stamp) from None
            self._request_format, self.version, self.model = ready.request_format, ready.version, ready.model
            self.first_text = await ask_first_text(ready.request_format)

    async def measure(self, state: StartState) -> StartFigures:
        """One measured start."""
        figures = await self._measure_start(state)
        if state == "cold-download" and self._hub is not None:
            return await asyncio.to_thread(self._hub.add_transfer, figures)
        return figures

    async def _measure_start(self, state: StartState) -> StartFigures:
        assert self._request_format is not None
        with (
            HealthProbe(is_starting=True) as probe,
            closing(ExecStamp()) as stamp,
            self._target(stamp, state) as target,
        ):
            try:
                async with asyncio.timeout(self._config.ready_timeout_s):
                    return await self._time_start(target, stamp, probe, self._request_format)
            except TimeoutError:
                raise self._not_ready(target, stamp) from None
            except CommandEndedError as error:
                raise TargetStartError(self._explain(error.message, target, stamp)) from error

    async def finish(self) -> None:
        """Measures the standby."""
        if self._running is not None:
            self.standby = await self._running.measure()

    def close(self) -> None:
        """Stops the standby and discards the root."""
        if self._running is not None:
            self._running.close()
        if self._used_root is not None:
            self._used_root.close()

    async def _time_start(
        self, target: CommandTarget, stamp: ExecStamp, probe: HealthProbe, request_format: RequestFormat
    ) -> StartFigures:
        target.start()
        host, port = _address(target)
        exec_ns = await stamp.wait(target.ensure_alive)
        probe.start(target.base_url)
        listening_ns = await wait_listening(host, port, target.ensure_alive)
        healthy_ns = await wait_healthy(host, port, target.ensure_alive)
        here = replace(request_format.destination, base_url=target.base_url)
        current = replace(request_format, destination=here)
        first_token_ns = await wait_first_token(current, target.ensure_alive)
        samples = await asyncio.to_thread(probe.finish)
        figures = StartFigures(
            listening_ms=(listening_ns - exec_ns) / 1e6,
            healthy_s=(healthy_ns - exec_ns) / 1e9 if healthy_ns else None,
            first_token_s=(first_token_ns - exec_ns) / 1e9,
            phases=await read_phases(current),
        )
        return add_probes(figures, samples)

    async def _check_model_list(self, target: CommandTarget) -> None:
        """Raises if a healthy server fails to list its models: the wait for readiness would only time out."""
        host, port = _address(target)
        is_healthy = await wait_healthy(host, port, target.ensure_alive) is not None
        if not is_healthy or self._spec.model:
            return
        status = await ask_status(host, port, "/v1/models")
        if status is not None and status >= 500:
            raise InputError(
                f"{self.name} is healthy, but its /v1/models answers {status}: name the model with "
                "--request-model or --vs-request-model"
            )

    def _not_ready(self, target: CommandTarget, stamp: ExecStamp) -> TargetStartError:
        reason = f"{self.name} was not ready after {self._config.ready_timeout_s:g} s"
        return TargetStartError(self._explain(reason, target, stamp))

    @contextmanager
    def _target(self, stamp: ExecStamp, state: StartState) -> Iterator[CommandTarget]:
        """The server of one start; stopped at the end of the block."""
        standby = self._running if state == "standby" else None
        environment = dict(standby.environment if standby is not None else NO_STANDBY)
        with ExitStack() as stack:
            if state == "cold-download" and self._hub is not None:
                environment |= stack.enter_context(self._hub.empty_cache())
            root = self._used_root if state == "tenth-root" else None
            if state in ("fresh-root", "fresh-root-cold"):
                root = stack.enter_context(closing(OverlayRoot()))
            words = shlex.join(root.words) if root is not None else ""
            command = f"{_join(stamp)} {words} {self._spec.command}"
            yield stack.enter_context(closing(CommandTarget(self._spec, command, environment)))

    def _explain(self, message: str, target: CommandTarget, stamp: ExecStamp) -> str:
        """The message without the stamp script's words, and with the end of the server's log."""
        text = message.replace(f"{_join(stamp)} ", "")
        return text if "\n" in text else f"{text}\n{target.log_tail}".rstrip()


def _address(target: CommandTarget) -> tuple[str, int]:
    address = urlsplit(target.base_url)
    return address.hostname or "", address.port or 0


def _join(stamp: ExecStamp) -> str:
    return shlex.join(stamp.stamp_words)
