"""Runs `vllm-cli serve --models FILE` as a process. Its models are small commands or our own tiny servers."""

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from envs.registry import env
from tests.e2e.server_process import ServerProcess
from tests.support.http_client import Answer
from tests.support.waiting import is_gone, wait_until

FOREIGN: Final = Path(__file__).with_name("foreign_server.py")
FOREIGN_COMMAND: Final = (sys.executable, "-I", "-S", str(FOREIGN))
"""The command, which starts in 20 ms, because it imports no packages."""

Models = Mapping[str, Mapping[str, Any]]


def foreign(*arguments: str, **keys: Any) -> dict[str, Any]:
    """The entry of a model whose server is `foreign_server.py` with these arguments."""
    return {"cmd": shlex.join(FOREIGN_COMMAND) + " ${PORT} " + shlex.join(arguments), **keys}


def embedded(model: Path, **keys: Any) -> dict[str, Any]:
    """The entry of a model of the embedded engine."""
    return {"model": str(model), "engine": "embedded", "args": ["--max-model-len", "256"], **keys}


def wait_marked(place: str, number: int) -> list[psutil.Process]:
    """Waits for so many processes of models whose sockets' paths begin with `place`."""
    found: list[psutil.Process] = []

    def are_all_there() -> bool:
        found.clear()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_marked = process.environ().get(env.VCLI_ROUTER.name, "").startswith(place)
                found.extend([process] if is_marked and not is_gone(process.pid) else [])
        return len(found) == number

    wait_until(are_all_there)
    return found


class RouterProcess(ServerProcess):
    """A router whose models file can be rewritten. The end of the `with` block checks for leftovers."""

    def __init__(
        self,
        folder: Path,
        models: Models,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self.file = folder / "models.yaml"
        self.write(models)
        super().__init__(["--models", str(self.file), *arguments], environment=environment, wait=wait)

    def write(self, models: Models, **keys: Any) -> None:
        """Replaces the models file. Writes JSON, which is also YAML. All models may run together."""
        new = self.file.with_suffix(".new")
        together = {"together": {"swap": False, "exclusive": False, "members": list(models)}}
        new.write_text(json.dumps({"models": models, "groups": together, **keys}))
        new.replace(self.file)

    def post(self, model: str, *, timeout_s: float = 60.0) -> Answer:
        """Requests a completion of one token."""
        body = {"model": model, "prompt": "Once", "max_tokens": 1}
        return self.ask("/v1/completions", body, timeout_s=timeout_s)

    def models(self) -> dict[str, dict[str, Any]]:
        """Name of a model -> its row in `/status.json`."""
        return {model["id"]: model for model in self.ask("/status.json").json["models"]}

    def state(self, model: str) -> str:
        return self.models()[model]["status"]

    def wait_state(self, model: str, *states: str) -> None:
        wait_until(lambda: self.state(model) in states)

    def pid(self, model: str) -> int:
        """The id of the process that the router has started for the model."""
        pid = self.models()[model]["pid"]
        assert isinstance(pid, int), f"{model} has no process"
        return pid

    def tree(self, model: str) -> list[psutil.Process]:
        process = psutil.Process(self.pid(model))
        return [process, *process.children(recursive=True)]
