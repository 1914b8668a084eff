"""A forked server and an executed one are compared from outside (/proc) and from inside (an audit hook)."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.ports import free_port
from tests.standby_process import OFF, StandbyProcess
from tests.waiting import wait_until

_HOOK: Final = """
import os, sys

busy = []

def describe():
    import gc, json, locale, logging, multiprocessing, random, resource, signal, tempfile, threading, warnings
    torch = sys.modules.get("torch")
    shown = {{
        "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": str(sys.flags),
        "environment": dict(os.environ), "folder": os.getcwd(), "executable": sys.executable, "prefix": sys.prefix,
        "dont_write_bytecode": sys.dont_write_bytecode, "pycache_prefix": sys.pycache_prefix,
        "recursion": sys.getrecursionlimit(), "switch_interval": sys.getswitchinterval(),
        "locale": [locale.setlocale(kind) for kind in range(7)],
        "encodings": [locale.getpreferredencoding(), sys.getfilesystemencoding()],
        "streams": [[stream and (stream.encoding, stream.errors, stream.line_buffering)]
                    for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "handlers": {{number: str(signal.getsignal(number)).split(" at 0x")[0] for number in signal.valid_signals()
                     if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)}},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": {{name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT" in name}},
        "affinity": sorted(os.sched_getaffinity(0)), "nice": os.nice(0), "temporary": tempfile.gettempdir(),
        "start_method": multiprocessing.get_start_method(allow_none=True), "collects": gc.isenabled(),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "time_zone": __import__("time").tzname,
    }}
    if torch is not None:
        shown["torch"] = [torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
                          torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()]
        import numpy
        shown["random"] = [random.random(), torch.initial_seed(), float(torch.rand(1)), numpy.random.rand()]
    return json.dumps(shown)

def hook(event, args):
    if event != "open" or busy:
        return
    name = getattr(getattr(sys.modules.get("multiprocessing.process"), "current_process", lambda: None)(), "name", "")
    role = "engine" if name == "vllm-cli-engine" else "api"
    if not str(args[0]).endswith({{"engine": "generation_config.json", "api": "tokenizer.json"}}[role]):
        return
    if role == "api" and "serve" not in sys.argv:
        return
    busy.append(1)
    with open(os.environ["DESCRIBE_IN"] + "/" + role + ".part", "w") as file:
        file.write(describe())
    os.rename(file.name, os.environ["DESCRIBE_IN"] + "/" + role)

sys.addaudithook(hook)
""".replace("{{", "{").replace("}}", "}")

_LAUNCHER: Final = (
    "sh",
    "-c",
    'umask 027; ulimit -n 512; ulimit -c 0; trap "" USR1; cd "$0"; exec nice -n 3 taskset -c 0 "$@" 3</etc/hostname',
)
_STATUS: Final = (
    "Name", "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd",
    "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed_list", "Mems_allowed_list", "THP_enabled",
)  # fmt: skip


class _Description(NamedTuple):
    outside: dict[str, Any]
    api: dict[str, Any]
    engine: dict[str, Any]


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which every Python program can describe itself."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(_HOOK)
    return {"PYTHONPATH": str(folder), "DESCRIBE_IN": "/nowhere"}


def _describe(model: Path, environment: Mapping[str, str], folder: Path, standby: StandbyProcess) -> _Description:
    folder.mkdir(exist_ok=True)
    environment = {**environment, "DESCRIBE_IN": str(folder), "A_USERS_VARIABLE": "a value"}
    launcher = (*_LAUNCHER, str(folder.parent))
    with ServerProcess([str(model)], environment=environment, launcher=launcher) as server:
        wait_until(lambda: (folder / "api").exists() and (folder / "engine").exists())
        servers = standby.servers()
        process = servers[0] if servers else psutil.Process(server.process.pid)
        outside = _outside(process)
        port = str(server.port)
    texts = [(folder / role).read_text().replace(port, "PORT") for role in ("api", "engine")]
    described = _Description(json.loads(json.dumps(outside).replace(port, "PORT")), *map(json.loads, texts))
    for inside in (described.api, described.engine):
        for name in ("DESCRIBE_IN", "VCLI_STANDBY", "VCLI_API_PROCESS"):
            inside["environment"].pop(name, None)
    return described


def _outside(process: psutil.Process) -> dict[str, Any]:
    folder = Path(f"/proc/{process.pid}")
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    return {
        "status": {name: status.get(name) for name in _STATUS},
        "cmdline": process.cmdline(),
        "folder": process.cwd(),
        "comm": (folder / "comm").read_text(),
        "nice": process.nice(),
        "streams": [str((folder / "fd" / str(number)).readlink()) for number in (0, 3)],
        **{name: (folder / name).read_text() for name in ("limits", "cgroup", "oom_score_adj", "timerslack_ns")},
    }


def test_a_forked_server_equals_an_executed_one(hooked: dict[str, str], tiny_llama: Path, tmp_path: Path) -> None:
    with StandbyProcess(environment=hooked) as standby:
        environment = {**hooked, **standby.environment}
        warm = _describe(tiny_llama, environment, tmp_path / "warm", standby)
        second = _describe(tiny_llama, environment, tmp_path / "second", standby)
        assert standby.num_starts() == 2
        cold = _describe(tiny_llama, {**environment, **OFF}, tmp_path / "cold", standby)
    ours, theirs = warm.engine.pop("random"), second.engine.pop("random")
    assert not set(ours) & set(theirs), "two forks draw the same random numbers"
    cold.engine.pop("random")
    for description in (warm, cold):
        for name in ("orig_argv", "flags"):  # of the program `python -c` with which an executed forkserver starts
            del description.engine[name]
        del description.api["switch_interval"]  # shorter while the engine is requested (`engine.background_start`)
        description.api.pop("torch", None)  # the API process of a cold start has not imported it
        description.api.pop("random", None)
    for ours, theirs in zip(warm, cold, strict=True):
        differing = _differences(ours, theirs)
        assert not differing, json.dumps(differing, indent=1)


def _differences(warm: dict[str, Any], cold: dict[str, Any]) -> dict[str, Any]:
    """What differs, with both values; of inner dictionaries too."""
    found: dict[str, Any] = {}
    for name in warm.keys() | cold.keys():
        ours, theirs = warm.get(name), cold.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found |= {f"{name} {inner}": values for inner, values in _differences(ours, theirs).items()}
        elif ours != theirs:
            found[name] = ours, theirs
    return found


@pytest.mark.thorough
def test_a_console_script_has_the_same_name_in_a_warm_start(
    tiny_llama: Path, standby: StandbyProcess, tmp_path: Path
) -> None:
    script = Path(sys.executable).with_name("vllm-cli")
    if not script.exists():
        pytest.skip("the console script is not installed")
    names = []
    for environment in (standby.environment, OFF):
        words = [str(script), "serve", str(tiny_llama), "--port", str(free_port())]
        with subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as process:
            if environment is OFF:
                wait_until(lambda pid=process.pid: len(psutil.Process(pid).children()) > 0)
                server = psutil.Process(process.pid)
            else:
                wait_until(lambda: len(standby.servers()) == 1)
                (server,) = standby.servers()
                wait_until(lambda server=server: server.children())
            names.append(((Path(f"/proc/{server.pid}") / "comm").read_text(), server.cmdline()[:-1]))
            process.terminate()
            process.wait(60)
    assert names[0] == names[1]
    standby.wait_no_server()
