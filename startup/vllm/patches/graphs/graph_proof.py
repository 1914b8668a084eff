"""The stored result of late CUDA graphs on a GPU. `--cuda-graphs auto` follows it.

`make test-gpu` writes `late_graphs_on_gpus.json` beside this file. A run counts for the code that it has run,
for its release of vLLM and for its kind of GPU. Without such a run, `auto` captures before readiness.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

RESULT: Final = Path(__file__).with_name("late_graphs_on_gpus.json")
BASE: Final = "what auto captures late"
"""The feature of the run without which no other run counts: one rank, FLASH_ATTN, compiled."""
STATES: Final = ("cold", "warm")
"""The starts of a run: in a new process without caches, and beside a standby."""
_BACKEND: Final = "FLASH_ATTN"
_FOLDER: Final = Path(__file__).parent
_CODE: Final = ("late_graphs.py", "early_graphs.py", "capture_mark.py", "cuda_graphs.py", "graph_proof.py")


class GpuRun(NamedTuple):
    """A start that captured late, and whose answers were those of a start that captured before."""

    feature: str
    state: str
    backend: str
    capability: str
    """The GPU's compute capability, such as `9.0`."""
    vllm: str
    """The version, without the build behind `+`."""


@dataclass(frozen=True)
class GraphProof:
    """The runs on one kind of GPU with one release of vLLM."""

    runs: frozenset[GpuRun] = frozenset()

    def shows(self, feature: str) -> bool:
        """Whether cold and warm starts with the feature have captured late, and those without any feature."""
        return self._has_both(BASE, _BACKEND) and self._has_both(feature)

    def _has_both(self, feature: str, backend: str | None = None) -> bool:
        of_feature = [run for run in self.runs if run.feature == feature and backend in (None, run.backend)]
        return {run.state for run in of_feature}.issuperset(STATES)


def read_proof(capability: str, vllm: str) -> GraphProof:
    """The stored runs of the present code. None count if the file is missing or damaged."""
    with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        content = json.loads(RESULT.read_text(encoding="utf-8"))
        if content["code"] == code_digest():
            runs = (GpuRun(**run) for run in content["runs"])
            own = (capability, without_build(vllm))
            return GraphProof(frozenset(run for run in runs if (run.capability, run.vllm) == own))
    return GraphProof()


def write_proof(runs: Iterable[GpuRun], machine: Any, path: Path = RESULT) -> None:
    """Stores the runs of the present code, with a description of the machine."""
    content = {"code": code_digest(), "machine": machine, "runs": [run._asdict() for run in sorted(runs)]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def code_digest() -> str:
    """Identifies the code that captures late."""
    content = b"\0".join((_FOLDER / name).read_bytes() for name in _CODE)
    return hashlib.sha256(content).hexdigest()


def without_build(version: str) -> str:
    """Returns `0.33.0` for `0.33.0+cu130`."""
    return version.partition("+")[0]
