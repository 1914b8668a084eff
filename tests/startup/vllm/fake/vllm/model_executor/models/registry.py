"""Maps models to the modules of their classes. Inspects a class in another process, as vLLM does."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Inspected(NamedTuple):
    module: str
    by: int
    parent: int
    """The parent of the process that inspected the class."""


@dataclass(frozen=True)
class _LazyRegisteredModel:
    module_name: str

    def inspect_model_cls(self) -> None:
        self._save_modelinfo_to_cache(_run_in_subprocess(_Inspection(self.module_name)), "")

    def _save_modelinfo_to_cache(self, mi: Inspected, module_hash: str) -> None:
        folder = Path(os.environ["VLLM_CACHE_ROOT"], "modelinfos")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.module_name}.json").write_text(json.dumps(mi._asdict()))


class _ModelRegistry:
    models = {"FakeForCausalLM": _LazyRegisteredModel("vllm.model_executor.models.fake_llama")}

    def inspect(self, architecture: str) -> Inspected:
        return _run_in_subprocess(_Inspection(self.models[architecture].module_name))


@dataclass(frozen=True)
class _Inspection:
    module: str

    def __call__(self) -> Inspected:
        return Inspected(self.module, os.getpid(), os.getppid())


def _run_in_subprocess(fn: Callable[[], Any]) -> Any:
    command = [sys.executable, "-m", "vllm.model_executor.models.registry"]
    done = subprocess.run(command, input=pickle.dumps(fn), capture_output=True, check=True)
    return pickle.loads(done.stdout)


ModelRegistry = _ModelRegistry()

if __name__ == "__main__":
    answer = pickle.loads(sys.stdin.buffer.read())()
    sys.stdout.buffer.write(pickle.dumps(answer))
