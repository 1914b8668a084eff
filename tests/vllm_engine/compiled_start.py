"""Runs starts of real vLLM with their own caches, until they have reported about the compiled model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.peer_vllm import ROOT
from tests.vllm_engine.vllm_server import VllmServer

FLAGS: Final = ("--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")
AOT: Final = "cache/torch_compile_cache/torch_aot_compile"
"""The path of compiled models below the folder of a start."""
RECORDS: Final = "cache/vllm_cli/compiled"
PEERS: Final = {
    "0.32": ROOT / ".peers/vllm",
    **{version: ROOT / f".peers/vllm-{version}.0" for version in ("0.29", "0.30", "0.31", "0.33")},
}
"""Version of vLLM -> virtual environment."""


@dataclass(frozen=True)
class Told:
    """The report of a start."""

    code: int | None
    """The exit code. None if the start became ready and answered, so that the test has ended it."""
    log: str
    compiled: Mapping[str, Any]
    """`compiled_model` in the report. Empty for a plain start."""

    def warnings(self, text: str) -> list[str]:
        """The launcher's warnings with this text."""
        return [line for line in self.log.splitlines() if "WARNING" in line and "(launcher)" in line and text in line]


def start_and_end(
    folder: Path,
    model: Path,
    *words: object,
    launcher: str = "ours",
    version: str = "0.32",
    environment: Mapping[str, str] | None = None,
    until: Callable[[VllmServer], object] = lambda _: True,
) -> Told:
    """Runs a start with the caches of `folder`. Once it is ready and has answered, waits for `until`."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    is_plain = launcher == "plain"
    reporting = () if is_plain else ("--startup-report", str(report))
    variables = {"PYTHONDONTWRITEBYTECODE": "", **(environment or {})}  # an empty one also hides that of the tests
    server = VllmServer(launcher, model, *FLAGS, *map(str, words), *reporting, folder=folder, environment=variables)
    server.command = [word.replace(str(PEERS["0.32"]), str(PEERS[version])) for word in server.command]
    with server:
        server.wait(lambda: server.health() == 200 or server.process.poll() is not None)
        code = server.process.poll()
        if code is None:
            assert server.generate()
            server.wait(lambda: is_plain or report.exists())
            server.wait(lambda: until(server))
    compiled = json.loads(report.read_text())["compiled_model"] if report.exists() else None
    return Told(code, server.log, compiled or {})


def recorded(folder: Path) -> list[Path]:
    """The records of compiled models."""
    return sorted((folder / RECORDS).glob("*.json"))


def compiled_keys(folder: Path) -> set[str]:
    """vLLM's names of all complete compiled models."""
    return {path.parts[-3] for path in (folder / AOT).glob("*/*/model")}
