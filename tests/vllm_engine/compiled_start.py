"""Starts of real vLLM with caches of their own, which end once they have told of the compiled model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.peer_vllm import ROOT
from tests.vllm_engine.vllm_server import VllmServer

FLAGS: Final = ("--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")
AOT: Final = "cache/torch_compile_cache/torch_aot_compile"
"""Below the folder of a start."""
RECORDS: Final = "cache/vllm_cli/compiled"
PEERS: Final = {
    "0.32": ROOT / ".peers/vllm",
    **{version: ROOT / f".peers/vllm-{version}.0" for version in ("0.29", "0.30", "0.31", "0.33")},
}
"""Virtual environments by the version of their vLLM."""


@dataclass(frozen=True)
class Told:
    """What a start has told."""

    code: int | None
    """Of its own exit; None if it was ready and answered, and was ended by the test."""
    log: str
    compiled: Mapping[str, Any]
    """`compiled_model` of its report; empty for a plain start."""

    @property
    def changes(self) -> set[tuple[str, str]]:
        """Kind and name of each change."""
        return {(change["kind"], change["name"]) for change in self.compiled.get("changes", ())}

    def values(self, name: str) -> tuple[str, str]:
        """Before and now."""
        (change,) = (change for change in self.compiled["changes"] if change["name"] == name)
        return change["before"], change["now"]

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
    """One start with the caches of `folder`; once it is ready, it answers, and lasts until this is true."""
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
    """vLLM's names of the compiled models that are whole."""
    return {path.parts[-3] for path in (folder / AOT).glob("*/*/model")}
