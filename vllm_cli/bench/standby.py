"""The standby for `bench startup --state standby`: imports modules, and forks the servers to measure."""

import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from envs.environment import snapshot
from startup.settings.serve_arguments import LauncherLine
from startup.standby.sockets import template_kind_for
from vllm_cli.bench.target import TargetStartError
from vllm_cli.supervised_command import CommandEndedError, SupervisedCommand

NO_STANDBY: Final = {"VCLI_STANDBY": "off"}
"""Variables for starts without a standby. Otherwise, a standby of the user could fork the server."""
_POLL_S: Final = 0.1


class BenchStandby:
    """A standby in the command's Python environment, with the command's variables and its own sockets."""

    def __init__(self, command: str, model: str | None) -> None:
        """`model` is the standby's --model. `command` must be a command of this program."""
        self._prefix, arguments = split_own_command(command)
        self._arguments = ["--for", kind] if (kind := find_template_kind(self._prefix, arguments)) else []
        self._arguments += ["--model", model] if model else []
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-cli-bench-")
        self._place = {"XDG_RUNTIME_DIR": self._folder.name}
        self._process = SupervisedCommand(self._place)
        self.environment: Final = {**self._place, "VCLI_STANDBY": "require"}
        """Variables with which a start fails unless the standby forks the server."""

    def start(self, timeout_s: float) -> None:
        """Returns once the imports are done. Raises TargetStartError if they fail or take too long."""
        self._process.run([*self._prefix, "standby", *self._arguments])
        end_s = time.monotonic() + timeout_s
        try:
            while (states := {each["state"] for each in self._ask().get("templates", [])}) != {"ready"}:
                self._process.ensure_alive()
                if not states <= {"ready", "importing"}:
                    raise CommandEndedError("Its imports have failed.")
                if time.monotonic() > end_s:
                    raise CommandEndedError(f"It was not ready after {timeout_s:g} s.")
                time.sleep(_POLL_S)
        except CommandEndedError as err:
            text = err.message if "\n" in err.message else f"{err.message}\n{self._process.log_tail}".rstrip()
            raise TargetStartError(f"The standby of {shlex.join(self._prefix)}: {text}") from err

    def measure(self) -> dict[str, Any]:
        """The memory (PSS) while no server runs, the time of the imports, and the number of forks."""
        status = self._ask()
        templates = status.get("templates", [])
        return {
            "memory_bytes": status.get("memory_bytes", 0),
            "import_s": sum(template["import_s"] or 0.0 for template in templates),
            "num_starts": sum(template["num_starts"] for template in templates),
        }

    def close(self) -> None:
        self._process.close()
        self._folder.cleanup()

    def _ask(self) -> dict[str, Any]:
        """The data of `standby status`. Empty while the standby does not answer."""
        arguments = [*self._prefix, "standby", "status", "--json"]
        done = subprocess.run(arguments, capture_output=True, env={**snapshot(), **self._place})
        if done.returncode:
            return {}
        return msgspec.json.decode(done.stdout, type=dict[str, Any])


def split_own_command(command: str) -> tuple[list[str], list[str]]:
    """Splits a command of this program into the arguments before `serve` and the arguments after it.

    The arguments before `serve` also start other commands of the same installation. For a command of another
    program, the first list is empty and the second has all arguments.
    """
    arguments = shlex.split(command)
    arguments = ["env", *arguments] if "=" in arguments[0] else arguments
    for index, argument in enumerate(arguments):
        is_script = Path(arguments[index - 1]).name == "vllm-cli"
        is_module = arguments[index - 2 : index] == ["-m", "vllm_cli"]
        if argument == "serve" and (is_script or is_module):
            return arguments[:index], arguments[index + 1 :]
    return [], arguments


def find_template_kind(prefix: list[str], arguments: list[str]) -> str | None:
    """The kind of template process for the command's engine. If None, the standby chooses."""
    values = [argument.partition("=")[2] for argument in prefix if argument.startswith("VCLI_ENGINE=")]
    line = LauncherLine(arguments)
    engine = line.value("--engine") or (values or [line.wanted_engine])[-1]
    return template_kind_for(engine, line) if engine in ("embedded", "vllm") else None
