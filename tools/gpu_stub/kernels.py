"""Writes the list of Triton's kernels that a release of vLLM needs, as starts record it.

An eager and a compiling start run on the stand-in for a GPU, with the caches of an empty home. The kernels
of eager starts come first in the list, because every start needs them.
"""

import json
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from startup.kernels.kernel import Kernel, unique
from startup.storage.caches import of_type
from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.support.standby_process import OFF

_LISTS: Final = Path(__file__).parents[2] / "startup" / "kernels" / "shipped"
_STARTS: Final = (EAGER, EAGER[1:])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the starts, and write startup/kernels/shipped/vllm-RELEASE.json."""
    found: list[Kernel] = []
    for words in _STARTS:
        with tempfile.TemporaryDirectory() as folder:
            recorded = _record(words, Path(folder))
        found += [of_type(Kernel)(fields) for fields in recorded["kernels"]]
    kernels = list(unique(found))
    major, minor, *_ = recorded["version"].split(".")
    path = _LISTS / f"vllm-{major}.{minor}.json"
    lines = ",\n".join(json.dumps(asdict(kernel)) for kernel in kernels)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    click.echo(f"{path}: {len(kernels)} kernels")


def _record(words: tuple[str, ...], home: Path) -> dict[str, Any]:
    """The list of a start with these words and of its first answer, with the slowest kernel first."""
    with GpuServer("ours", *words, folder=home, environment={"STUB_GPUS": "1", **OFF}) as server:
        server.wait(lambda: server.health() == 200)
        server.generate()
        server.terminate(signal.SIGTERM)
    (file,) = (home / "cache" / "vllm_cli" / "kernels").glob("*.json")
    content: dict[str, Any] = json.loads(file.read_bytes())["value"]
    return content


if __name__ == "__main__":
    main()
