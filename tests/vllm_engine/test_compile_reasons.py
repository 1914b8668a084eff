"""The reasons for which a start of real vLLM compiles. Each cause is provoked, and only this cause is named.

A start with `--compile-cache require` ends when it would compile, so most causes cost no compilation.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from tests.vllm_engine.compiled_start import PEERS, compiled_keys, recorded, start_and_end

REQUIRE: Final = ("--compile-cache", "require")


@pytest.fixture(scope="module")
def base(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the caches of a start that has compiled."""
    folder = tmp_path_factory.mktemp("compiled")
    told = start_and_end(folder, small_model, until=lambda _: recorded(folder))
    assert told.compiled["state"] == "compiled"
    assert "has no compiled model for it yet" in told.compiled["reason"]
    assert not told.changes
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `base`, as another VLLM_CACHE_ROOT."""
    shutil.copytree(base / "cache", tmp_path / "cache")
    yield tmp_path
    shutil.rmtree(tmp_path / "cache")  # a hundred megabytes


@contextmanager
def _edited(path: Path, edit: Callable[[Any], None]) -> Iterator[None]:
    """Edits a JSON file during the block."""
    before = path.read_text()
    content = json.loads(before)
    edit(content)
    path.write_text(json.dumps(content))
    yield
    path.write_text(before)


def _edit_record(folder: Path, edit: Callable[[Any], None]) -> None:
    for path in recorded(folder):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))


@dataclass(frozen=True)
class Miss:
    """A start that misses the compiled model. It names changes: (kind, name) -> (before, now)."""

    changes: dict[tuple[str, str], tuple[str, str]]
    environment: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    version: str = "0.32"
    record: Callable[[Any], None] | None = None


def _variable(name: str, value: str, before: str, now: str = "") -> Any:
    return pytest.param(Miss({("variables", name): (before, now or value)}, environment={name: value}), id=name)


def _flag(words: str, changes: dict[str, tuple[str, str]]) -> Any:
    named = {("flags", name): values for name, values in changes.items()}
    return pytest.param(Miss(named, words=tuple(words.split())), id=words.replace(" ", "="))


def _config(name: str, value: Any, changes: dict[str, tuple[str, str]]) -> Any:
    named = {("model", f"ModelConfig.{key}"): values for key, values in changes.items()}
    return pytest.param(Miss(named, config={name: value}), id=f"config-{name}")


def _version(version: str) -> Any:
    changes = {("versions", "vllm"): ("0.32.0+cpu", f"{version}.0+cpu")}
    is_here = PEERS[version].exists()
    mark = pytest.mark.skipif(not is_here, reason=f"vLLM {version} is not installed")
    return pytest.param(Miss(changes, version=version), id=f"vllm-{version}", marks=mark)


SITE: Final = next(PEERS["0.32"].glob("lib/python3*/site-packages"), PEERS["0.32"])
SOURCE: Final = SITE / "vllm/model_executor/models/llama.py"


def _set_source(record: Any) -> None:
    """Changes a digest in the record, so that the traced module seems to have changed since."""
    record["sources"]["vllm.model_executor.models.llama"] = "0" * 64


def _source() -> Any:
    now = sha256(SOURCE.read_bytes()).hexdigest() if SOURCE.exists() else ""
    values = f"SHA-256 {'0' * 12}", f"SHA-256 {now[:12]}"
    return pytest.param(Miss({("sources", str(SOURCE)): values}, record=_set_source), id="source")


BATCHED: Final = "SchedulerConfig.max_num_batched_tokens"
RANGES: Final = "CompilationConfig.compile_ranges_endpoints"

MISSES: Final = [
    _variable("VLLM_PLUGINS", "none", "", '["none"]'),
    _flag("--dtype bfloat16", {"ModelConfig.dtype": ("torch.float32", "torch.bfloat16")}),
    _flag("--max-num-batched-tokens 1024", {BATCHED: ("2048", "1024"), RANGES: ("[2048]", "[1024]")}),
    _flag("-cc.compile_sizes=[4]", {"CompilationConfig.compile_sizes": ("", "[4]")}),
    _config("rms_norm_eps", 1e-5, {"hf_config.rms_norm_eps": ("1e-06", "1e-05")}),
    *map(_version, ("0.29", "0.30", "0.31", "0.33")),
    _source(),
]


@pytest.mark.parametrize("miss", MISSES)
def test_what_differs_is_named_and_nothing_else(miss, folder, small_model):
    if miss.record is not None:
        _edit_record(folder, miss.record)
    with _edited(small_model / "config.json", lambda config: config.update(miss.config)):
        told = start_and_end(
            folder, small_model, *miss.words, *REQUIRE, environment=miss.environment, version=miss.version
        )
    named = {(change["kind"], change["name"]): (change["before"], change["now"]) for change in told.compiled["changes"]}
    assert named == miss.changes
    assert told.code == 3
    assert "--compile-cache require" in told.log.rpartition("\nError:" if miss.version > "0.30" else " Error:")[2]


HITS: Final = {
    "variables-that-are-not-hashed": ({"VLLM_HOST_IP": "127.0.0.1", "VLLM_PORT": "29500", "POD_IP": "10.1.1.1"}, ()),
    "flags-that-are-not-hashed": ({}, ("--seed", "1", "--no-enable-prefix-caching")),
}


@pytest.mark.parametrize(("environment", "words"), HITS.values(), ids=HITS)
def test_what_does_not_matter_is_loaded_at_another_root(environment, words, folder, small_model):
    told = start_and_end(folder, small_model, *words, *REQUIRE, environment=environment)
    assert (told.code, told.compiled["state"]) == (None, "loaded")
    assert told.compiled["saved_s"] > 1
    assert len(compiled_keys(folder)) == 1


@pytest.mark.parametrize("version", ["0.29", "0.32", "0.33"])
def test_what_plain_vllm_has_compiled_is_loaded_and_recorded(version, small_model, tmp_path):
    """Plain vLLM uses the same key."""
    if not PEERS[version].exists():
        pytest.skip("not installed")
    plain = start_and_end(tmp_path, small_model, launcher="plain", version=version)
    assert plain.code is None
    (key,) = compiled_keys(tmp_path)
    told = start_and_end(tmp_path, small_model, *REQUIRE, version=version, until=lambda _: recorded(tmp_path))
    assert (told.code, told.compiled["state"]) == (None, "loaded")
    assert compiled_keys(tmp_path) == {key}
