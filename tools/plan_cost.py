"""Milliseconds to plan the files of a start: `python -m tools.plan_cost [FOLDER]`.

Plans a folder, and a snapshot of 163 shards with an index of 9 MB, as the largest models have it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from startup.model.file_plan import plan_files
from startup.model.request import EngineName, ModelRequest

_NUM_SHARDS: Final = 163
_NUM_EXPERTS: Final = 15_500
_COMMIT: Final = "a" * 40
_ROUNDS: Final = 50


def main() -> None:
    """Prints a line for each engine and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".peers/model"))
    folder: Path = parser.parse_args().folder
    engines: tuple[EngineName, ...] = ("embedded", "vllm")
    with tempfile.TemporaryDirectory() as cache:
        write_snapshot(Path(cache))
        for engine in engines:
            measure(ModelRequest(model=str(folder), engine=engine))
            measure(ModelRequest(model="org/large", engine=engine, download_dir=cache))


def measure(request: ModelRequest) -> None:
    """Plans some times; prints the least and the median."""
    durations_ms = []
    for _ in range(_ROUNDS):
        begin_ns = time.perf_counter_ns()
        plan = plan_files(request)
        num_files = len(plan.prefetched)
        durations_ms.append((time.perf_counter_ns() - begin_ns) / 1e6)
        assert plan.files is not None and num_files, f"{request.model} is not on disk"
    text = f"{min(durations_ms):.2f} ms, median {statistics.median(durations_ms):.2f} ms"
    sys.stdout.write(f"{request.engine}, {request.model}, {num_files} files: {text}\n")


def write_snapshot(cache: Path) -> None:
    """A large model of empty files in the layout of the hub's client."""
    repository = cache / "models--org--large"
    snapshot, blobs = repository / "snapshots" / _COMMIT, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(_COMMIT)
    shards = [f"model-{number:05}-of-{_NUM_SHARDS:06}.safetensors" for number in range(1, _NUM_SHARDS + 1)]
    weight_map = {
        f"model.layers.{expert // 256}.mlp.experts.{expert}.{kind}_proj.{part}": shards[
            expert * _NUM_SHARDS // _NUM_EXPERTS
        ]
        for expert in range(_NUM_EXPERTS)
        for kind in ("up", "gate", "down")
        for part in ("weight", "weight_scale_inv")
    }
    small = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    contents = dict.fromkeys((*shards, *small), "{}")
    contents["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}, indent=2)
    for number, (name, text) in enumerate(contents.items()):
        (blobs / str(number)).write_text(text)
        (snapshot / name).symlink_to(f"../../blobs/{number}")


if __name__ == "__main__":
    main()
