"""Which module has which model's class, looked up in another process in order not to touch a device in this one."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

IMPORTED_IN = os.getpid()


class Inspected(NamedTuple):
    module: str
    by: int
    parent: int
    """Who started the process that has looked."""


@dataclass(frozen=True)
class _Registered:
    module_name: str


class _Registry:
    models = {"FakeForCausalLM": _Registered("vllm.model_executor.models.fake_llama")}

    def inspect(self, architecture: str) -> Inspected:
        return _run_in_subprocess(_Look(self.models[architecture].module_name))


@dataclass(frozen=True)
class _Look:
    module: str

    def __call__(self) -> Inspected:
        return Inspected(self.module, os.getpid(), os.getppid())


def _run_in_subprocess(function: Callable[[], Any]) -> Any:
    command = [sys.executable, "-m", "vllm.model_executor.models.registry"]
    done = subprocess.run(command, input=pickle.dumps(function), capture_output=True, check=True)
    return pickle.loads(done.stdout)


ModelRegistry = _Registry()

if __name__ == "__main__":
    answer = pickle.loads(sys.stdin.buffer.read())()
    sys.stdout.buffer.write(pickle.dumps(answer))
