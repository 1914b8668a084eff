"""Runs a server of real vLLM: `vllm serve`, or `vllm-cli serve --engine vllm` cold or warm."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import psutil

from tests.support.http_client import Answer
from tests.support.peer_vllm import PYTHON, ROOT
from tests.support.ports import free_port
from tests.support.program import Server
from tests.support.standby_process import StandbyProcess

_READY_S = 1200.0
_ANSWER_S = 600.0

ENVIRONMENT: Final = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables of all starts."""


class VllmServer(Server):
    """A server on a free port. The end of the `with` block stops it and checks that all processes end."""

    python: ClassVar[Path] = PYTHON
    """The interpreter of vLLM's virtual environment."""
    engine: ClassVar[str] = "vllm"
    """The engine of the launchers `ours` and `warm`."""
    PROMPT: Final = "The capital of France is"
    MAX_TOKENS: Final = 4

    poll_s = 0.2
    """So long that polling takes little CPU time from the start."""
    gone_s = 120.0

    def __init__(
        self,
        launcher: str,
        model: Path,
        *arguments: str,
        folder: Path,
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            launcher: `plain`, `ours`, or `warm`. `warm` is `ours` with a fork from its own standby.
            model: the folder of the model.
            arguments: further arguments of the command.
            folder: the folder for the log and the caches.
            environment: variables in addition to those of the test.
            prefix: a command that executes the arguments after it.
        """
        self.port = free_port()
        self.name = launcher
        self.leaves_nothing = launcher != "plain"
        own = (model, "--host", "127.0.0.1", "--port", self.port, "--served-model-name", "model")
        extra = environment or {}
        variables = {
            **os.environ,
            **ENVIRONMENT,
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            **extra,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), extra.get("PYTHONPATH")))),
        }
        ours = ("-m", "vllm_cli", "serve", "--engine", self.engine)
        program = (self.python.with_name("vllm"), "serve") if launcher == "plain" else ours
        super().__init__(
            [*prefix, self.python, *program, *own, *arguments],
            variables,
            log_path=folder / f"{launcher}-{self.port}.log",
            cwd=folder,
            process_group=0,
        )
        self._standby: StandbyProcess | None = None

    def __enter__(self) -> Self:
        if self.name == "warm":
            kind = "vllm-eager" if "--enforce-eager" in self.command else "vllm-compiled"
            self._standby = StandbyProcess("--for", kind, environment=self.variables, python=self.python)
            self._standby.__enter__()
            self.variables |= self._standby.environment
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        try:
            super().__exit__()
        finally:
            if self._standby is not None:
                self._standby.__exit__()

    def wait(self, is_true: Callable[[], object], timeout_s: float = _READY_S) -> None:
        """Waits like every program. Meanwhile records the processes, because some may get other parents."""

        def is_true_now() -> object:
            self.family()
            return is_true()

        super().wait(is_true_now, timeout_s)

    def roots(self) -> list[psutil.Process]:
        """The started process. In a warm start, also the server that the standby's template has forked."""
        return [self.root, *self._warm_servers()]

    def _warm_servers(self) -> list[psutil.Process]:
        templates = self._standby.templates() if self._standby else []
        return [process for template in templates for process in template.children()]

    def main_process(self) -> psutil.Process:
        (process,) = self._warm_servers() or [self.root]
        return process

    def titled(self, title: str) -> list[psutil.Process]:
        """The server's processes whose titles begin with this text, in order."""
        return sorted((each for each in self.family() if title_of(each).startswith(title)), key=title_of)

    def ask(self, path: str, body: object = None, **options: Any) -> Answer:
        """Sends a request, with a time-out for answers of a busy machine."""
        return super().ask(path, body, **{"timeout_s": _ANSWER_S, **options})

    def status(self, path: str) -> int:
        """The status of an answer. 0 if there is no answer."""
        return self.ask(path).status

    def get(self, path: str) -> Any:
        """The parsed JSON of an answer to GET."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """The text of an answer to GET."""
        return self._text_of(self.ask(path))

    def post(self, path: str, **body: Any) -> Any:
        """The parsed JSON of an answer to POST with a JSON body."""
        return json.loads(self._text_of(self.ask(path, {"model": "model", **body})))

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a streamed answer."""
        answer = self.ask(path, {"model": "model", **body, "stream": True})
        lines = self._text_of(answer).splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(event) for event in data]

    def _text_of(self, answer: Answer) -> str:
        assert answer.status == 200, answer.body
        return answer.body.decode()

    def generate(self) -> str:
        """The text of a completion at temperature 0."""
        wanted = {"prompt": self.PROMPT, "max_tokens": self.MAX_TOKENS}
        answer = self.post("/v1/completions", **wanted, temperature=0, ignore_eos=True)
        return str(answer["choices"][0]["text"])


def title_of(process: psutil.Process) -> str:
    """The process's title without `VLLM::`, or its command line."""
    try:
        return " ".join(process.cmdline()).strip().removeprefix("VLLM::")
    except psutil.Error:
        return ""
