"""The standby that a measured `vllm-cli serve` forks its servers from, in the state `standby`."""

import asyncio
import contextlib
import shlex
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from envs import foreign
from startup.serve_words import ServeWords
from startup.standby.kinds import kind_for
from vllm_cli.bench.startup.results import StandbyFigures
from vllm_cli.bench.target import TargetStartError
from vllm_cli.supervised_command import CommandEndedError, SupervisedCommand

FORK_PHASE: Final = "fork_from_standby"
"""The phase of /startupz that only warm starts have."""

NO_STANDBY: Final = {"VCLI_STANDBY": "off"}
"""Variables of starts from all other states: a standby that the user runs must not make them warm."""

_POLL_S: Final = 0.1
_IMPORTING: Final = "importing"
_READY: Final = "ready"


class BenchStandby:
    """Runs in the command's Python environment, with the command's variables and with sockets of its own."""

    def __init__(self, command: "OwnCommand", *, model: str | None, timeout_s: float) -> None:
        """
        Args:
            command: the measured command.
            model: the standby's --model.
            timeout_s: how long the imports may take.
        """
        self._command = command
        self._model = model
        self._timeout_s = timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-cli-bench-")
        self._process = SupervisedCommand(self._place)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a start is warm or fails."""
        return {**self._place, "VCLI_STANDBY": "require"}

    async def start(self) -> None:
        """Returns once the imports are done.

        Raises:
            TargetStartError: the standby has ended, its imports have failed, or they take too long.
        """
        kind = await self._command.find_kind()
        words = ["standby", "--for", kind, *(["--model", self._model] if self._model else [])]
        self._process.run([*self._command.prefix, *words])
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._wait_ready()
        except CommandEndedError as err:
            raise TargetStartError(f"The standby has ended. {err.message}") from err
        except TimeoutError:
            raise TargetStartError(self._explain(f"was not ready after {self._timeout_s:g} s")) from None

    async def measure(self) -> StandbyFigures:
        """Its memory while no server runs, and how many servers it has forked."""
        status = await self._ask() or {}
        templates = status.get("templates", [])
        return StandbyFigures(
            memory_bytes=status.get("memory_bytes", 0),
            import_s=sum(template["import_s"] or 0.0 for template in templates),
            num_starts=sum(template["num_starts"] for template in templates),
        )

    def close(self) -> None:
        """Stops it."""
        self._process.close()
        self._folder.cleanup()

    @property
    def _place(self) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": self._folder.name}

    async def _wait_ready(self) -> None:
        while True:
            states = {template["state"]: template for template in (await self._ask() or {}).get("templates", [])}
            if set(states) == {_READY}:
                return
            for state, template in states.items():
                if state not in (_READY, _IMPORTING):
                    raise TargetStartError(self._explain(f"has failed: {template['error'] or state}"))
            self._process.ensure_alive()
            await asyncio.sleep(_POLL_S)

    async def _ask(self) -> dict[str, Any] | None:
        """What `standby status` shows; None while it does not answer."""
        words = [*self._command.prefix, "standby", "status", "--json"]
        code, output = await _run(words, {**foreign.snapshot(), **self._place})
        return msgspec.json.decode(output, type=dict[str, Any]) if code == 0 else None

    def _explain(self, text: str) -> str:
        return f"The standby for {self._command.description} {text}\n{self._process.log_tail}".rstrip()


class OwnCommand:
    """A command of this program: `[env] [NAME=VALUE...] [WRAPPER...] vllm-cli serve ...`."""

    def __init__(self, prefix: Sequence[str], words: list[str]) -> None:
        self.prefix = prefix
        """All words before `serve`, to run other commands of the same installation in the same way."""
        self._words = words
        """Those after `serve`."""

    @classmethod
    async def find(cls, command: str) -> "OwnCommand | None":
        """None for other programs and for a version without `vllm-cli standby`."""
        words = shlex.split(command)
        if "=" in words[0]:
            words = ["env", *words]
        for index, word in enumerate(words):
            is_own = Path(words[index - 1]).name == "vllm-cli" or words[index - 2 : index] == ["-m", "vllm_cli"]
            if word == "serve" and is_own:
                found = cls(words[:index], words[index + 1 :])
                code, _ = await _run([*found.prefix, "standby", "--help"], foreign.snapshot())
                return found if code == 0 else None
        return None

    @property
    def description(self) -> str:
        return shlex.join(self.prefix)

    async def find_kind(self) -> str:
        """The template that the command's servers are forked from."""
        has_vllm = await self._has_vllm()
        given = ServeWords(self._words)
        return kind_for(given.engine(self._variable("VCLI_ENGINE"), lambda: has_vllm), given)

    def _variable(self, name: str) -> str:
        """The value set in the command, else this process's, which the command inherits."""
        values = [word.partition("=")[2] for word in self.prefix if word.startswith(f"{name}=")]
        return values[-1] if values else foreign.text_of(name)

    async def _has_vllm(self) -> bool:
        """Asks the interpreter, which is beside a console script."""
        words = list(self.prefix)
        if words[-2:] == ["-m", "vllm_cli"]:
            del words[-2:]
        else:
            words[-1] = str(Path(shutil.which(words[-1]) or words[-1]).with_name("python"))
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        return (await _run([*words, "-c", code], foreign.snapshot()))[0] == 0


async def _run(words: Sequence[str], environment: dict[str, str]) -> tuple[int, bytes]:
    """The exit code and the output; 127 for a command that cannot be executed, as of a shell."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=environment
        )
    except OSError:
        return 127, b""
    try:
        output, _ = await process.communicate()
        return process.returncode or 0, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
