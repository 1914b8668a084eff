"""Times the bare script, the floor that a server's start is compared with."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import msgspec

from vllm_cli.bench.startup.config import PROMPT, StartState
from vllm_cli.bench.startup.exec_stamp import ExecStamp
from vllm_cli.bench.startup.results import StandbyFigures, StartFigures
from vllm_cli.bench.target import TargetStartError

_SCRIPT = Path(__file__).with_name("bare_script.py")


class _Token(msgspec.Struct):
    token_ns: int
    text: str


class FloorSide:
    """Runs the bare script in a fresh interpreter; it has no socket, so only the first token is timed."""

    name = "bare script"
    version: str | None = None
    standby: StandbyFigures | None = None

    def __init__(self, model: Path, *, timeout_s: float) -> None:
        self.model = str(model)
        self.description = f"torch, tokenizers, safetensors and a written-out forward pass over {model}"
        self.first_text: str | None = None
        self._timeout_s = timeout_s

    async def prepare(self) -> None:
        """One run that is not measured."""
        await self.measure("warm")

    async def measure(self, state: StartState) -> StartFigures:
        """One measured run; the same with and without a standby."""
        with contextlib.closing(ExecStamp()) as stamp:
            words = [*stamp.stamp_words, sys.executable, "-P", str(_SCRIPT), self.model, PROMPT]
            process = await asyncio.create_subprocess_exec(
                *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
            try:
                token = await self._read_token(process)
            finally:
                await _kill(process)
            exec_ns = await stamp.wait(lambda: None)
        self.first_text = token.text
        return StartFigures(listening_ms=None, healthy_s=None, first_token_s=(token.token_ns - exec_ns) / 1e9)

    async def finish(self) -> None:
        """Nothing is measured after the rounds."""

    def close(self) -> None:
        """Nothing runs between the rounds."""

    async def _read_token(self, process: Process) -> _Token:
        try:
            async with asyncio.timeout(self._timeout_s):
                output, errors = await process.communicate()
        except TimeoutError:
            raise TargetStartError(f"The bare script gave no token within {self._timeout_s:g} s") from None
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            raise TargetStartError(f"The bare script failed: {lines[-1] if lines else process.returncode}")
        return msgspec.json.decode(output, type=_Token)


async def _kill(process: Process) -> None:
    """Kills the script's session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
