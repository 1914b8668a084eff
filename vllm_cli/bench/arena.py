"""Owns the servers under test and sees to it that the one being measured has the machine to itself."""

from typing import Self

from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.errors import TargetDiedError, TargetStartError
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.readiness import ReadyServer, wait_until_ready
from vllm_cli.bench.redaction import redact
from vllm_cli.bench.target import Target, build_target


class Arena:
    """Starts, wakes and stops servers; a context manager that leaves none running.

    What a started server does while another one is measured is the idle policy:
    `pause` freezes all its processes (SIGSTOP), so that it takes no processor time and is back at once;
    `run` leaves it alone; `stop` ends it and starts it afresh for its next turn.
    """

    def __init__(self, config: BenchConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self.targets: list[Target] = [build_target(spec) for spec in config.targets]
        self._awake: Target | None = None
        self._server: ReadyServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for target in self.targets:
            target.close()

    async def prepare(self) -> list[ReadyServer]:
        """Bring up every server once, so that what cannot start fails before anything is measured."""
        servers = []
        for target in self.targets:
            self._progress.note(f"{target.spec.name}: waiting for {redact(target.spec.command or target.base_url)}")
            servers.append(await self._bring_up(target))
            self._progress.note(f"{target.spec.name}: ready after {servers[-1].ready_after_s:.1f} s")
        return servers

    async def wake(self, target: Target) -> ReadyServer:
        """Make this server the one that runs; unless it ran already, it has just answered a completion."""
        if self._awake is target and self._server:
            return self._server
        try:
            return await self._bring_up(target)
        except TargetStartError as error:
            raise TargetDiedError(error.message) from error

    async def _bring_up(self, target: Target) -> ReadyServer:
        if self._awake and self._awake is not target:
            self._retire(self._awake)
        self._awake = target
        target.start()
        target.resume()
        self._server = await wait_until_ready(target, self._config)
        return self._server

    def _retire(self, target: Target) -> None:
        if self._config.idle == "pause":
            target.pause()
        elif self._config.idle == "stop":
            target.close()
