"""Starts `vllm-cli serve --engine vllm` with the fake vLLM, reads its processes' state, and stops it."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from envs.registry import OWN_PREFIX, variables
from tests.support.cli import CLI, run_cli
from tests.support.ports import free_port
from tests.support.program import Server
from tests.support.waiting import has_death_pipe

FAKE = Path(__file__).with_name("fake")
ROOT = Path(__file__).parents[3]
NO_HUB = "http://127.0.0.1:9"
"""An address that refuses connections. The tests' models exist nowhere, and the fake vLLM reads none."""
CHECKED = {"VCLI_PREFLIGHT": None, "VLLM_TARGET_DEVICE": "cpu"}
"""Variables of a start with a preflight. It is for CPUs, because the tests' torch may be built for GPUs.

The preflight is on in one start of each kind: cold, warm, plain, headless, with several API servers, at a
UNIX socket, with `--idle-stop`. Tests that expect no warning pass `--enforce-eager`,
because not every machine has the compiler that a compiled start needs.
"""
_SERVE = ("serve", "--engine", "vllm", "--prefetch", "off")


def command(*arguments: str) -> list[str]:
    """The command line of `serve`, without a prefetch."""
    return [*CLI, *_SERVE, *arguments]


def environment(folder: Path, fake: Path | None = FAKE, **changes: str | None) -> dict[str, str]:
    """This process's variables, without vllm-cli's settings or a preflight. Caches are in `folder`."""
    ours = {variable.name for variable in variables()}
    kept = {n: v for n, v in os.environ.items() if n not in ours and not n.startswith(OWN_PREFIX)}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    own = {"VLLM_CACHE_ROOT": str(folder / "cache"), "TMPDIR": str(folder), "HF_ENDPOINT": NO_HUB}
    own["VCLI_PREFLIGHT"] = "off"  # the models of most tests have no weights
    path = {"PYTHONPATH": f"{fake}:{ROOT}" if fake else str(ROOT)}
    return {n: v for n, v in {**kept, **own, **path, **changes}.items() if v is not None}


def broken_environment(folder: Path, fault: str, **changes: str) -> dict[str, str]:
    """Variables with which `broken/sitecustomize.py` breaks one thing."""
    path = f"{Path(__file__).with_name('broken')}:{FAKE}:{ROOT}"
    return environment(folder, PYTHONPATH=path, BROKEN=fault, **changes)


def variant(folder: Path, **files: str) -> Path:
    """A copy of the fake vLLM. `files`: module (`__` for a dot) -> content."""
    copy = folder / "fake"
    shutil.copytree(FAKE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in files.items():
        (copy / "vllm" / f"{name.replace('__', '/')}.py").write_text(content)
    return copy


def prepend(fake: Path, name: str, code: str) -> Path:
    """Puts code at the beginning of a copy's module. The module's name has slashes."""
    path = fake / "vllm" / f"{name}.py"
    path.write_text(code + path.read_text())
    return fake


def without_forks(folder: Path, version: str, fails: str = "raise AssertionError") -> Path:
    """A copy with this version. Its workers execute the statement `fails` if they are forked."""
    fake = variant(folder, _version=f'__version__ = version = "{version}"\n')
    refuses = f"if b'multiprocessing.spawn' not in open('/proc/self/cmdline', 'rb').read(): {fails}"
    return rewrite(fake, '        set_process_title(f"Worker', f'        {refuses}\n        set_process_title(f"Worker')


def unforkable(folder: Path) -> Path:
    """A copy that sets a variable which only a new program can apply."""
    sets = '    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"\n'
    return rewrite(variant(folder), sets, f"{sets}    os.environ['PYTHONHASHSEED'] = '7'\n")


def rewrite(copy: Path, old: str, new: str) -> Path:
    """Replaces a text in every module of a copy."""
    for path in copy.rglob("*.py"):
        path.write_text(path.read_text().replace(old, new))
    return copy


class FakeStart(Server):
    """One launcher with all its processes. The end of the `with` block checks that no process is left."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        host: str | None = "127.0.0.1",
        port: int | None = None,
        cwd: Path = ROOT,
    ) -> None:
        """If `host` is None, the address is in `arguments`."""
        self.port = free_port() if port is None else port
        address = ("--host", host, "--port", str(self.port)) if host else ()
        super().__init__(
            command(*arguments, *address),
            environment(folder) if env is None else env,
            log_path=folder / f"log-{self.port}",
            cwd=cwd,
            process_group=0,
        )

    def kind_of(self, pid: int) -> str:
        """The start method by which a process was started."""
        process = psutil.Process(pid)
        if any("multiprocessing.spawn" in argument for argument in process.cmdline()):
            return "spawn"
        return "forkserver" if _is_forkserver(process) else "fork"

    def lines_with(self, *texts: str) -> list[str]:
        return [line for line in self.log.splitlines() if any(text in line for text in texts)]

    def state(self) -> dict[str, Any]:
        """The state that `server`, `engine` and `workers` report."""
        self.family()
        return self.ask("/state").json

    def complete(self, prompt: str) -> str:
        """The text of a completion. Raises OSError if there is none."""
        answer = self.ask("/v1/completions", {"prompt": prompt})
        if answer.status != 200:
            raise OSError(f"no completion: {answer}")
        return answer.json["choices"][0]["text"]

    def forkservers(self) -> list[psutil.Process]:
        """The forkservers, without their forks."""
        found = []
        for process in [self.root, *self.root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if _is_forkserver(process) and not _is_forkserver(psutil.Process(process.ppid())):
                    found.append(process)
        return found

    def responders(self) -> list[psutil.Process]:
        """The launcher's forks that answer probes instead of vLLM."""
        arguments = self.root.cmdline()  # other forks, which have no death pipe, are about to execute a program
        return [each for each in self.root.children() if words(each) == arguments and has_death_pipe(each)]

    def titles(self) -> set[str]:
        return {_name(process) for process in self.family()}

    def named(self, title: str) -> psutil.Process:
        """Waits for the process with this title."""
        found: list[psutil.Process] = []

        def is_found() -> bool:
            found[:] = [process for process in self.family() if _name(process) == title]
            return bool(found)

        self.wait(is_found)
        (process,) = found
        return process


def run_fake(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command line until it exits."""
    return run_cli(*_SERVE, *arguments, env=environment(folder) if env is None else env, cwd=ROOT)


def _is_forkserver(process: psutil.Process) -> bool:
    return any("processes.forkserver" in argument for argument in words(process))


def words(process: psutil.Process) -> list[str]:
    """The process's command line. Empty if the process has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
