"""A folder that replaces a container's root. It has the files that manifests name, and a tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from startup.settings.config import DEFAULT_MODEL_ID
from tests.deploy.shipped import Start
from tests.router.router_process import FOREIGN
from tests.startup.vllm.fake_start import FAKE
from tests.support.ports import free_port

_PATH: Final = re.compile(r"(?<![\w/:.-])/(?=\w)(?!(?:dev|health)\b)")
_REPOSITORY: Final = re.compile(r"(?<![\w/.:-])[\w-]+/[\w.-]*\w")
_PLACEHOLDER: Final = re.compile(r"\b[A-Z]{2,}\b")
_SNAPSHOT: Final = "0" * 40
_LLAMA_SERVER: Final = """#!/bin/sh
while [ "$1" != --port ]; do shift; done
exec {python} -I -S {foreign} "$2"
"""
_OTHER_PROGRAMS: Final = 'command_not_found_handle() { vllm-cli "$@"; }\n'
_STAND_IN: Final = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
for word in words:
    if "vllm-cli serve" in word:
        os.system(word[word.index("vllm-cli serve"):])
names = [os.path.basename(word) for word in words]
if "vllm-cli" in names:
    words = words[names.index("vllm-cli") + 1:]
if words[:1] == ["serve"]:
    is_for_vllm = {{"vllm", "--tensor-parallel-size"}} & {{*words}}
    variables = os.environ | ({{"PYTHONPATH": "{fake}"}} if is_for_vllm else {{}})
    command = ["{python}", "-m", "vllm_cli", *words, "--port", "{port}", "--preflight-only"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    with open("{log}", "a") as log:
        print(json.dumps([words, done.returncode, done.stdout + done.stderr]), file=log)
"""
"""Replaces all programs. Only checks each `serve`, also one that a container or benchmark would run."""


class Checked(NamedTuple):
    """A `vllm-cli serve` of a shell script, and the result of its preflight."""

    arguments: list[str]
    exit_code: int
    output: str


class ContainerRoot:
    """Uses words, variables and files unchanged, except that absolute paths are below this folder.

    Creates all models that these texts name: in the hub's cache, or for placeholders such as MODEL in the
    working folder.
    """

    def __init__(self, path: Path, model: Path, **config: Any) -> None:
        """`path` must be short, because it has sockets. `config` changes the model's config.json."""
        self.path = path
        self.home = path / "home"
        self._programs = path / "programs"
        for name in ("home", "cache", "opt/vllm-cli", "programs", "tmp", "var/cache"):
            (path / name).mkdir(parents=True)
        (path / "var" / "cache" / "vllm-cli").symlink_to(path / "cache")
        (path / "opt" / "vllm-cli" / "bin").symlink_to(Path(sys.executable).parent)
        self._model = shutil.copytree(model, path / "models" / "model")
        own = json.loads((model / "config.json").read_text())
        (self._model / "config.json").write_text(json.dumps(own | {"max_position_embeddings": 40960} | config))
        self._write_program("llama-server", _LLAMA_SERVER.format(python=sys.executable, foreign=FOREIGN))
        self._link(path / "mnt" / "models")  # where KServe puts a model
        self._locally(DEFAULT_MODEL_ID)

    @property
    def launcher(self) -> tuple[str, ...]:
        """A launcher that executes a program in the working folder."""
        return ("env", "-C", str(self.home))

    def prepare(self, start: Start) -> tuple[list[str], dict[str, str]]:
        """Writes a start's files. Returns the start's words after `serve` (no port) and its variables."""
        self.write(start.files)
        own_words = [argument for argument in start.serve_arguments if not argument.startswith("--port=")]
        variables = {name: self._locally(value) for name, value in start.variables.items()}
        path = variables.get("PATH", "$PATH").replace("$PATH", f"{self._programs}:{os.environ['PATH']}")
        return [self._locally(argument) for argument in own_words], variables | {"HF_HUB_OFFLINE": "1", "PATH": path}

    def write(self, files: Mapping[str, str]) -> None:
        """Writes files that a start reads. Relative paths are in the working folder."""
        for path, text in files.items():
            file = self.home / self._locally(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self._locally(text))

    def run(self, script: str) -> list[Checked]:
        """Runs a shell script. Each `vllm-cli serve` in it only runs its preflight. No other program runs."""
        log = self.path / "log"
        log.touch()
        self._write_program("vllm-cli", _STAND_IN.format(python=sys.executable, fake=FAKE, port=free_port(), log=log))
        folders = {"HOME": self.home, "XDG_CACHE_HOME": self.path / "cache", "PATH": self._programs}
        subprocess.run(
            ["/bin/bash", "-c", f"{_OTHER_PROGRAMS}{self._locally(script)}\nwait"],
            cwd=self.home,
            env={**os.environ, **{name: str(folder) for name, folder in folders.items()}, "HF_HUB_OFFLINE": "1"},
            check=True,
            timeout=240,
        )
        return [Checked(*json.loads(line)) for line in log.read_text().splitlines()]

    def _locally(self, text: str) -> str:
        """The text with absolute paths below this folder. Creates all models that the text names."""
        for name in _REPOSITORY.findall(text):
            cached = self.path / "cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
            (cached / "refs").mkdir(parents=True, exist_ok=True)
            (cached / "refs" / "main").write_text(_SNAPSHOT)
            self._link(cached / "snapshots" / _SNAPSHOT)
        for name in _PLACEHOLDER.findall(text):
            self._link(self.home / name)
        return _PATH.sub(f"{self.path}/", text)

    def _link(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(self._model)

    def _write_program(self, name: str, text: str) -> None:
        (self._programs / name).write_text(text)
        (self._programs / name).chmod(0o755)
