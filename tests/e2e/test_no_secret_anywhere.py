"""Every command runs with marked keys. No file, no output and no process's command line shows the keys."""

import json
import os
import re
import resource
import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Self
from uuid import uuid4

import click
import pytest

from tests.e2e.server_process import ServerProcess
from tests.startup.vllm.fake_start import FakeStart
from tests.startup.vllm.fake_start import environment as fake_environment
from tests.support.cli import CLI, run_cli
from tests.support.folders import short_folder
from tests.support.http_client import ask
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until
from tools.generated_docs import walk_commands
from vllm_cli.commands.of_vllm import VllmCommand
from vllm_cli.main import COMMANDS

_INTERVAL_S = 0.005
_SMALL_BYTES = 1 << 20
MARK = f"s3same{uuid4().hex}"
KEYS = [f"{MARK}-1", f"{MARK}-2"]
SECRETS = ["--api-key", *KEYS, f"--hf-token={MARK}-3"]
VARIABLES = {
    "HF_TOKEN": f"{MARK}-4",
    "HUGGING_FACE_HUB_TOKEN": f"{MARK}-5",
    "OPENAI_API_KEY": KEYS[0],
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-6",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={MARK}-7",
    "HF_ENDPOINT": f"http://{MARK}:{MARK}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://{MARK}:{MARK}@127.0.0.1:9",
}
SERVE = shlex.join([*CLI, "serve"])
BENCH = "--json out.json --rounds 1"
EMBEDDED = "--engine embedded --max-model-len 256"
RUNS: dict[str, list[str]] = {
    "serve": [
        "nowhere SECRETS --port 0",
        "nowhere --api-key KEY --hf-token WRONG --port 0 --engine embedded --idle-stop 5m",
        "MODEL SECRETS --preflight-only",
        "nowhere none SECRETS --port 0 --engine embedded",
    ],
    "chat": [
        "--url URL --api-key KEY --quick Hello",
        "--url LOGIN --api-key KEY --quick Hello",
    ],
    "run": [f"MODEL SECRETS {EMBEDDED} --quick Hello"],
    "wait": ["URL --json", "LOGIN --timeout 1"],
    "load": ["MODEL --url URL --api-key KEY --json", "MODEL --url LOGIN --api-key WRONG"],
    "unload": ["MODEL --url URL --api-key WRONG --json"],
    "sleep": ["MODEL --url URL --api-key WRONG --json"],
    "ps": ["--json", ""],
    "stop": ["1"],
    "standby": ["--for nonsense"],
    "standby status": ["--json"],
    "standby stop": [""],
    "explain": ["report.json --json"],
    "caches": ["", "--json"],
    "caches prune": ["--all"],
    "doctor": [f"MODEL SECRETS {EMBEDDED} --json", "", "--json", "--env", "--env --json"],
    "prefetch": [
        f"MODEL SECRETS {EMBEDDED} --json",
        "MODEL --engine vllm --hf-token KEY --download-only",
        "somebody/something --json",
    ],
    "bake": [f"MODEL SECRETS {EMBEDDED} --output baked --json"],
    "bench startup": [f"--cmd SERVE {BENCH} --api-key KEY --pause 0"],
    "completion": ["bash"],
}
"""The tested command lines of each command. URL is a server with a key, LOGIN its address with a login."""
EXIT_CODES = {
    "serve": {0, 3},
    "chat": {0, 1},
    "wait": {0, 1},
    "load": {1},
    "unload": {1},
    "sleep": {1},
    "stop": {1, 2},
    "standby": {2},
    "standby status": {1},
    "standby stop": {1},
    "doctor": {0, 1},
    "explain": {0, 1},
    "prefetch": {0, 3},
    "bake": {0},
}


class SecretWatch:
    """Watches all processes and a folder during the `with` block, and finds texts with the mark.

    A process may show arguments that the user has typed until it has masked them. It masks them before it
    starts another process. No process may show any other argument with the mark.
    """

    def __init__(self, mark: str, temporary: Path) -> None:
        """`temporary` is a folder that is searched repeatedly, because some of its files are removed."""
        self._mark = mark.encode()
        self._temporary = temporary
        self._typed: list[list[bytes]] = []
        self._found: set[str] = set()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="secret-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def allow(self, arguments: Sequence[str]) -> None:
        """Allows the arguments of a command that the user types."""
        self._typed.append([argument.encode() for argument in arguments])

    def check(self, *folders: Path) -> None:
        """Fails if the mark was found before, or is in a file of these folders."""
        self._found.update(str(path) for folder in folders for path in self._files_with_mark(folder))
        assert not self._found, self._found

    def _run(self) -> None:
        while not self._has_ended.wait(_INTERVAL_S):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    self._look_at(process)
            self._found.update(map(str, self._files_with_mark(self._temporary, _SMALL_BYTES)))

    def _look_at(self, process: Path) -> None:
        if self._mark not in (process / "cmdline").read_bytes():
            return
        has_children = any((task / "children").read_bytes() for task in (process / "task").iterdir())
        arguments = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        if self._mark in b"\0".join(arguments) and (has_children or not self._is_typed(arguments)):
            self._found.add(b" ".join(arguments).decode(errors="replace"))

    def _is_typed(self, arguments: list[bytes]) -> bool:
        return any(
            arguments[begin : begin + len(typed)] == typed
            for typed in self._typed
            for begin in range(len(arguments) - len(typed) + 1)
        )

    def _files_with_mark(self, folder: Path, most_bytes: float = float("inf")) -> Iterator[Path]:
        for parent, _, names in os.walk(folder):  # without errors if a folder is removed meanwhile
            for path in (Path(parent, name) for name in names):
                with suppress(OSError):
                    if path.is_file() and path.stat().st_size <= most_bytes and self._mark in path.read_bytes():
                        yield path


@pytest.mark.smoke
def test_every_command_is_run():
    found = {
        name
        for name, command in walk_commands()
        if not isinstance(command, VllmCommand)
        and (not isinstance(command, click.Group) or command.invoke_without_command)
    }
    assert {entry.name for entry in COMMANDS if "of_vllm" not in entry.target} == {
        name.partition(" ")[0] for name in found
    }
    assert found == set(RUNS)


class _Sandbox:
    """Folders for everything that a command may write, and the variables that name them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        names = {"HOME": "home", "VLLM_CACHE_ROOT": "cache", "TMPDIR": "tmp", "XDG_RUNTIME_DIR": "run"}
        self.environment = VARIABLES | {variable: str(root / name) for variable, name in names.items()}
        for folder in (self.work, *(root / name for name in names.values())):
            folder.mkdir(mode=0o700)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[_Sandbox]:
    with short_folder() as folder:
        yield _Sandbox(folder)


@pytest.fixture(scope="module")
def watch(sandbox: _Sandbox) -> Iterator[SecretWatch]:
    with SecretWatch(MARK, sandbox.root / "tmp") as watching:
        yield watching


@pytest.fixture(scope="module")
def server(sandbox: _Sandbox, watch: SecretWatch, tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server with keys, and with a report of its start."""
    files = ["--startup-report", str(sandbox.work / "report.json")]
    arguments = [str(tiny_llama), *EMBEDDED.split(), "--log-level", "DEBUG", *files, *SECRETS]
    watch.allow(arguments)
    with ServerProcess(arguments, environment=sandbox.environment) as running:
        yield running


@pytest.mark.parametrize("name", RUNS)
def test_a_command_shows_no_secret(name, sandbox, watch, server, tiny_llama):
    measured = [str(tiny_llama), *EMBEDDED.split(), *SECRETS]
    values = {
        "MODEL": [str(tiny_llama)],
        "URL": [server.url],
        "LOGIN": [server.url.replace("//", f"//{MARK}:{MARK}@")],
        "SECRETS": SECRETS,
        "KEY": KEYS[:1],
        "WRONG": [f"{MARK}-wrong"],
        "SERVE": [f"{SERVE} {shlex.join(measured)}"],
    }
    watch.allow(measured)
    for run in RUNS[name]:
        arguments = [*name.split(), *(argument for part in run.split() for argument in values.get(part, [part]))]
        watch.allow(arguments)
        done = run_cli(*arguments, environment=sandbox.environment, cwd=sandbox.work)
        assert MARK not in done.stdout + done.stderr
        assert done.returncode in EXIT_CODES.get(name, {0}), done.stderr
    watch.check(sandbox.root)


def test_no_answer_and_no_log_line_shows_a_secret(server, watch):
    for path in (f"/v1/models?api_key={MARK}", f"/nowhere?x=1&access_token={MARK}", "/v1/completions"):
        for key in (KEYS[0], f"{MARK}-wrong"):
            assert MARK not in ask(f"{server.url}{path}", key=key).body.decode()
    for path in ("/metrics", "/status.json", "/startupz", "/openapi.json", "/version"):
        assert MARK not in ask(f"{server.url}{path}").body.decode()
    assert "/nowhere?x=1&access_token=" in server.log
    assert MARK not in server.log
    watch.check()


def test_a_warm_start_shows_no_secret(sandbox, watch, tiny_llama):
    """The standby, template process and dormant forkserver show no secret. Nor does the next start."""
    arguments = [str(tiny_llama), *EMBEDDED.split(), *SECRETS]
    watch.allow(arguments)
    token = f"token-{uuid4().hex}"
    with StandbyProcess(environment=sandbox.environment) as standby:
        environment = sandbox.environment | standby.environment
        with ServerProcess(arguments, environment=environment | {"A_TOKEN": token}) as server:
            forked = server.serving_process().pid
            assert ask(f"{server.url}/v1/models", key=KEYS[1]).status == 200
            assert ask(f"{server.url}/v1/models").status == 401
            assert _has_in_memory(forked, KEYS[1]), "the search does not work"
            assert _has_in_memory(forked, token)
            assert MARK not in server.log + standby.log
        for pid in (standby.template().pid, standby.process.pid):
            assert not _has_in_memory(pid, KEYS[1])
            assert not _has_in_memory(pid, token)
        watch.check(sandbox.root, standby.runtime_folder)
        with ServerProcess([str(tiny_llama), *EMBEDDED.split()], environment=environment) as server:
            assert ask(f"{server.url}/v1/models").status == 200


def _has_in_memory(pid: int, secret: str) -> bool:
    """Whether writable memory of a process has the secret. Skips the test if memory cannot be read."""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            return any(secret.encode() in part for part in _writable_parts(pid, memory))
    except PermissionError:
        pytest.skip("the memory of other processes cannot be read")


def _writable_parts(pid: int, memory: RawIOBase) -> Iterator[bytes]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
        if found and "[v" not in line:
            begin, end = (int(text, 16) for text in found.groups())
            while begin < end:
                memory.seek(begin)
                part = b""
                with suppress(OSError):  # since glibc 2.42, a stack contains its thread's guard pages
                    part = memory.read(end - begin) or b""
                yield part
                begin += max(len(part), resource.getpagesize())


def test_a_router_and_its_models_show_no_secret(sandbox, watch, tiny_llama, tmp_path):
    """Keys and tokens are on the router's command line and in its models file."""
    model = {"model": str(tiny_llama), "env": {"WANDB_API_KEY": f"{MARK}-8"}, "args": f"--hf-token {MARK}-9"}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"apiKeys": [f"{MARK}-10"], "models": {"tiny": model}}))
    arguments = ["--models", str(file), *EMBEDDED.split(), "--standby", "off", "--log-level", "DEBUG", *SECRETS]
    watch.allow(arguments)
    with ServerProcess(arguments, environment=sandbox.environment) as router:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        for key in (*KEYS, f"{MARK}-10"):
            assert ask(f"{router.url}/v1/completions", body, key=key).status == 200
        assert MARK not in ask(f"{router.url}/v1/completions", body, key=f"{MARK}-wrong").body.decode()
        file.write_text(json.dumps({"apiKeys": [f"{MARK}-11"], "models": {"tiny": model | {"env": [f"{MARK}-12"]}}}))
        wait_until(lambda: "models.tiny.env" in router.log)
        assert MARK not in router.log
        watch.check(sandbox.root)


def test_a_start_of_vllm_shows_no_secret(sandbox, watch):
    """The start writes its kind and a journal."""
    arguments = ["model", "--enforce-eager", *SECRETS]
    watch.allow(arguments)
    with FakeStart(sandbox.work, *arguments, env=fake_environment(sandbox.root, **sandbox.environment)) as start:
        start.wait_ready()
        wait_until(lambda: list(sandbox.root.glob("cache/vllm_cli/starts/*.json")))
    assert MARK not in start.log
    watch.check(sandbox.root)
