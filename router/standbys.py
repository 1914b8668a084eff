"""The router's own standbys. A standby keeps a process from which servers of one kind start faster."""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from base.machine.processes import child_pids, pss_bytes
from envs.registry import env
from router.child.child_process import inherited_environment
from router.model_entry import ModelEntry
from startup.processes import death_pipe
from startup.processes.back_off import LONGEST_S, BackOff
from startup.settings.serve_arguments import LauncherLine
from startup.standby import sockets
from startup.standby.sockets import template_kind_for
from startup.standby.status import STATUS, NoStandbyError, ask

logger = logging.getLogger(__name__)

_END_S: Final = 5.0


class Standbys:
    """All standbys of the router, used on the main thread."""

    def __init__(self, find_model: Callable[[str], str | None], folder: Path) -> None:
        """`find_model` returns the folder on disk of a model by its name. `folder` is the router's."""
        self._find_model = find_model
        self._folder = folder
        self._standbys: dict[str, OwnStandby] = {}

    def follow(self, kinds: Collection[str], entries: Iterable[ModelEntry]) -> "list[OwnStandby]":
        """Sets the kinds of standbys. Returns standbys that are no longer needed. The caller closes them.

        Each standby also keeps the class and tokenizer of the first model of its kind.
        """
        names: dict[str, str] = {}
        for entry in entries:
            names.setdefault(template_kind_of_entry(entry), entry.name)
        unneeded = [self._standbys.pop(kind) for kind in self._standbys.keys() - kinds]
        for kind in kinds:
            if kind not in self._standbys:
                find_model = partial(self._find_model, names.get(kind, ""))
                self._standbys[kind] = OwnStandby(kind, find_model, self._folder / f"standby-{kind}")
        return unneeded

    async def tend(self) -> None:
        """Starts each standby that is due to start. Called regularly."""
        for standby in [*self._standbys.values()]:
            await standby.tend()

    def variables_for(self, entry: ModelEntry) -> dict[str, str]:
        """The variables that make the model's start warm. Empty if no standby can fork its server."""
        standby = self._standbys.get(template_kind_of_entry(entry))
        return {} if standby is None else standby.variables

    def memory_bytes(self) -> int:
        """The memory (PSS) of all standbys in bytes. Reading it takes some milliseconds."""
        return sum(standby.memory_bytes() for standby in self._standbys.values())

    def close(self) -> None:
        for standby in self._standbys.values():
            standby.close()


class OwnStandby:
    """A `vllm-cli standby` process for one kind of server. It ends with the router."""

    def __init__(self, kind: str, find_model: Callable[[], str | None], folder: Path) -> None:
        """
        Args:
            kind: the kind of template process (`startup.standby.sockets`).
            find_model: returns the folder of a model. The standby also keeps this model's class and
                tokenizer.
            folder: the standby's folder with its sockets. It is created.
        """
        self._kind = kind
        self._find_model = find_model
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._back_off = BackOff()
        self._due_s = 0.0
        self._started_s = 0.0
        self._is_closed = False

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that make a start use this standby. Empty if the standby does not run."""
        return {} if self._process is None else {env.VCLI_STANDBY_FOLDER.name: str(self._folder)}

    async def tend(self) -> None:
        """Starts the standby if it is due, unless a standby that the user has started has the same kind."""
        now = time.monotonic()
        if self._process is not None:
            if (code := self._process.poll()) is not None:
                self._note_end(code, now)
        elif now >= self._due_s:
            self._due_s = now + LONGEST_S  # looks again later for the user's own standby
            folder, is_served = await asyncio.to_thread(lambda: (self._find_model(), _is_served(self._kind)))
            if not is_served and not self._is_closed:
                try:
                    self._start(folder, now)  # on this thread: the kernel ends the process with the thread
                except OSError as err:
                    logger.warning("the router's standby cannot be started, starts are cold: %s", err)

    def memory_bytes(self) -> int:
        """The memory (PSS) of the standby and its template process, in bytes."""
        process = self._process
        if process is None:
            return 0
        pids = (process.pid, *child_pids(process.pid))
        return sum(map(pss_bytes, pids))

    def close(self) -> None:
        """Ends the standby and removes its folder."""
        self._is_closed = True
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, folder: str | None, now: float) -> None:
        """Starts the process. If the router is killed, the process gets SIGTERM, so that it can clean up."""
        model = () if folder is None else ("--model", folder)
        router_pid = os.getpid()
        environment = inherited_environment() | {env.VCLI_STANDBY_FOLDER.name: str(self._folder)}
        if env.VLLM_LOGGING_LEVEL.get() == "INFO":  # the standby's lines would mix with the server's
            environment[env.VLLM_LOGGING_LEVEL.name] = "WARNING"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vllm_cli", "standby", "--for", self._kind, *model],
            cwd=sockets.module_folder(),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: death_pipe.follow_parent(router_pid, signal.SIGTERM),
        )
        self._started_s = now

    def _note_end(self, code: int, now: float) -> None:
        self._process = None
        pause_s = self._back_off.take_s(now - self._started_s)
        self._due_s = now + pause_s
        logger.warning("the standby's process ended with exit code %d. It is started again in %g s", code, pause_s)


def _is_served(kind: str) -> bool:
    """Whether a standby that the user has started forks servers of this kind, or will do so soon."""
    with suppress(NoStandbyError):
        templates = [each for each in ask(STATUS).templates if each.kind == kind]
        return any(each.state in ("importing", "ready") for each in templates)
    return False


def template_kind_of_entry(entry: ModelEntry) -> str:
    """The kind of template process that the model's server can be forked from. Empty for a user's command."""
    if entry.foreign is not None:
        return ""
    return template_kind_for(entry.engine, LauncherLine(entry.arguments))
