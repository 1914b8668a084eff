"""The reasons for which a start of real vLLM compiles. Each cause is provoked, and named.

A start with `--compile-cache require` ends when it would compile, so most causes cost no compilation.
`tests/startup/vllm/test_start_metrics.py` has more causes, with a vLLM that compiles nothing.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support.peer_vllm import ROOT, versions_of_make
from tests.vllm_engine.vllm_server import VllmServer

FLAGS: Final = ("--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")
AOT: Final = "cache/torch_compile_cache/torch_aot_compile"
"""The path of compiled models below the folder of a start."""
PEERS: Final = {
    **{version.rpartition(".")[0]: ROOT / f".peers/vllm-{version}" for version in versions_of_make()},
    "0.32": ROOT / ".peers/vllm",
}
"""Version of vLLM -> virtual environment."""


@dataclass(frozen=True)
class Told:
    code: int | None
    """The exit code. None if the start became ready and answered, so that the test has ended it."""
    log: str
    compiled: Mapping[str, Any]
    """`compiled_model` in the report. Empty for a plain start."""

    def warnings(self, text: str) -> list[str]:
        return [line for line in self.log.splitlines() if "WARNING" in line and "(launcher)" in line and text in line]


def start_and_end(
    folder: Path,
    model: Path,
    *arguments: object,
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
    server = VllmServer(launcher, model, *FLAGS, *map(str, arguments), *reporting, folder=folder, environment=variables)
    server.command = [argument.replace(str(PEERS["0.32"]), str(PEERS[version])) for argument in server.command]
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
    return sorted((folder / "cache/vllm_cli/compiled").glob("*.json"))


def compiled_keys(folder: Path) -> set[str]:
    """vLLM's names of all complete compiled models."""
    return {path.parts[-3] for path in (folder / AOT).glob("*/*/model")}


REQUIRE: Final = ("--compile-cache", "require")
BATCHED: Final = ("--max-num-batched-tokens", "1024")


@pytest.fixture(scope="module")
def base(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the caches of a start that has compiled."""
    folder = tmp_path_factory.mktemp("compiled")
    told = start_and_end(folder, small_model, until=lambda _: recorded(folder))
    assert told.compiled["state"] == "compiled"
    assert "has no compiled model for it yet" in told.compiled["reason"]
    assert "difference" not in told.compiled
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `base`, as another VLLM_CACHE_ROOT."""
    shutil.copytree(base / "cache", tmp_path / "cache")
    yield tmp_path
    shutil.rmtree(tmp_path / "cache")  # a hundred megabytes


@contextmanager
def _edited(paths: list[Path], edit: Callable[[Any], object]) -> Iterator[None]:
    """Edits JSON files during the block."""
    before = {path: path.read_text() for path in paths}
    for path, text in before.items():
        content = json.loads(text)
        edit(content)
        path.write_text(json.dumps(content))
    yield
    for path, text in before.items():
        path.write_text(text)


class Miss(NamedTuple):
    """A start that misses the compiled model. It names the first difference: kind, name, before, now."""

    difference: tuple[str, str, str, str]
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    config: dict[str, Any] = {}
    version: str = "0.32"


MISSES: Final = {
    "variable": Miss(("variables", "VLLM_PLUGINS", "", '["none"]'), environment={"VLLM_PLUGINS": "none"}),
    "flag": Miss(("flags", "CompilationConfig.compile_ranges_endpoints", "[2048]", "[1024]"), arguments=BATCHED),
    "config": Miss(("model", "ModelConfig.hf_config.rms_norm_eps", "1e-06", "1e-05"), config={"rms_norm_eps": 1e-5}),
    **{
        version: Miss(("versions", "vllm", "0.32.0+cpu", f"{version}.0+cpu"), version=version)
        for version in ("0.29", "0.33")
    },
}


@pytest.mark.parametrize("miss", MISSES.values(), ids=MISSES)
def test_the_first_difference_is_named(miss, folder, small_model):
    if not PEERS[miss.version].exists():
        pytest.skip(f"vLLM {miss.version} is not installed")
    arguments, environment = (*miss.arguments, *REQUIRE), miss.environment
    with _edited([small_model / "config.json"], lambda config: config.update(miss.config)):
        told = start_and_end(folder, small_model, *arguments, environment=environment, version=miss.version)
    assert tuple(told.compiled["difference"].values()) == miss.difference
    assert told.code == 3
    assert "--compile-cache require" in told.log.rpartition("\nError:" if miss.version > "0.30" else " Error:")[2]


def test_what_does_not_matter_is_loaded_at_another_root(folder, small_model):
    arguments = ("--seed", "1", "--no-enable-prefix-caching", *REQUIRE)
    environment = {"VLLM_HOST_IP": "127.0.0.1", "VLLM_PORT": "29500", "POD_IP": "10.1.1.1"}
    told = start_and_end(folder, small_model, *arguments, environment=environment)
    assert (told.code, told.compiled["state"]) == (None, "loaded")
    assert told.compiled["saved_s"] > 0
    assert len(compiled_keys(folder)) == 1


@pytest.mark.parametrize("version", ["0.29", "0.32", "0.33"])
def test_what_plain_vllm_has_compiled_is_loaded_and_recorded(version, small_model, tmp_path):
    """Plain vLLM uses the same key."""
    if not PEERS[version].exists():
        pytest.skip("not installed")
    assert start_and_end(tmp_path, small_model, launcher="plain", version=version).code is None
    (key,) = compiled_keys(tmp_path)
    told = start_and_end(tmp_path, small_model, *REQUIRE, version=version, until=lambda _: recorded(tmp_path))
    assert (told.code, told.compiled["state"]) == (None, "loaded")
    assert compiled_keys(tmp_path) == {key}


@pytest.mark.ci_vllm
@pytest.mark.parametrize("launcher", ["ours", "warm"])
def test_the_first_start_of_another_machine_loads(launcher, folder, small_model, tmp_path_factory):
    """The location gets its archive from a start that loads the model, too."""
    location, machine = tmp_path_factory.mktemp("location") / "shared", tmp_path_factory.mktemp("machine")
    start_and_end(folder, small_model, "--compile-cache", location, until=lambda _: [*location.glob("[0-9]*/*.zip")])
    told = start_and_end(machine, small_model, "--compile-cache", f"{location},require", launcher=launcher)
    assert (told.code, told.compiled["state"]) == (None, "loaded")
    assert "compiled models: fetched 1" in told.log
    assert not told.warnings("compiled model")
    assert compiled_keys(machine) == compiled_keys(folder)
