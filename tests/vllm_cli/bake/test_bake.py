"""`vllm-cli bake` with both engines: the folder, later starts with it, failures, and recorded pages."""

import compileall
import json
import mmap
import os
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from startup.storage.caches import CACHE, INSPECTIONS, OWN
from tests.e2e.server_process import ServerProcess
from tests.startup.vllm.fake_start import FakeStart, environment
from tests.support.cli import run_cli
from vllm_cli.bake.bake import used_pages
from vllm_cli.bake.kernels import parse_architectures
from vllm_cli.bake.start import has_own_bytecode, without_addresses

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def baked(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "baked"
    secrets = ("--api-key", "s3same-1", "s3same-2", "--hf-tok", "s3same-3")
    config = folder.with_name("config.yaml")
    keys = folder.with_name("keys")
    keys.write_text("s3same-5\n")
    config.write_text(f"api-key: [s3same-4]\napi-key-file: {keys}\nport: 8001\nssl-certfile: /missing.pem\n")
    arguments = ("--engine", "embedded", "--output", folder, "--json", *secrets, "--port", 8000, "--config", config)
    done = run_cli("bake", tiny_llama, *arguments, cwd=ROOT, timeout_s=600)
    assert done.returncode == 0, done.stderr
    parts = {part["name"] for part in json.loads(done.stdout)["parts"]}
    assert parts == {"start history", "package scan", "import file", "pages to prefetch"}
    return folder


@pytest.mark.thorough
def test_the_folder_is_complete_and_has_the_flags_of_later_starts_and_no_key(baked):
    arguments = json.loads((baked / "manifest.json").read_text())["arguments"]
    assert arguments == [arguments[0], "--engine", "embedded", "--config", str(baked.with_name("config.yaml"))]
    assert [path for path in baked.rglob("*") if path.is_file() and b"s3same" in path.read_bytes()] == []
    assert sorted(path.name for path in baked.parent.iterdir()) == ["baked", "config.yaml", "keys"]
    assert sorted(path.name for path in baked.iterdir()) == ["cache", "manifest.json", "pages.json"]
    assert {path.stat().st_mode & 0o777 for path in baked.rglob("*")} == {0o755, 0o644}, "only its owner can write"


@pytest.mark.thorough
def test_a_later_start_uses_it_and_writes_only_to_the_cache_folder(baked, tiny_llama, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in baked.rglob("*")}
    variables = {"VCLI_BAKED": str(baked), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    with ServerProcess([str(tiny_llama), "--engine", "embedded"], environment=variables):
        pass  # it was ready
    cache = tmp_path / "cache" / "vllm_cli"
    assert not list(cache.glob("imports/*.json"))  # the package scan is the baked one
    assert {path: path.stat().st_mtime_ns for path in baked.rglob("*")} == before
    own, of_the_build = (list((path / "history").iterdir()) for path in (cache, baked / CACHE / OWN))
    assert [path.name for path in own] == [path.name for path in of_the_build]


@pytest.mark.parametrize(
    "arguments",
    [("model", "--no-such-flag"), ("--engine", "nonsense"), ("--max-model-len", "much"), ("--timeout", "0")],
    ids=" ".join,
)
def test_wrong_arguments_are_exit_code_2(arguments, tmp_path, invoke, monkeypatch):
    monkeypatch.setenv("VCLI_ENGINE", "embedded")
    done = invoke("bake", *arguments, "--output", tmp_path / "baked")
    assert done.returncode == 2, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_a_baked_folder_is_replaced(tmp_path, tiny_llama, invoke):
    (tmp_path / "mine").touch()
    done = invoke("bake", tiny_llama, "--engine", "embedded", "--output", tmp_path)
    assert done.returncode == 2
    assert "was not written by `vllm-cli bake`" in done.stderr
    assert (tmp_path / "mine").exists()


_VLLM_WORDS = ("model", "--enforce-eager")


def _bake_vllm(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_cli("bake", *arguments, "--engine", "vllm", "--output", folder / "baked", env=env or environment(folder))


@pytest.mark.thorough
def test_the_first_start_keeps_a_record_of_its_own(tmp_path):
    done = _bake_vllm(tmp_path, *_VLLM_WORDS, "--json")
    assert done.returncode == 0, done.stderr
    assert {"latest starts", "start history"} <= {part["name"] for part in json.loads(done.stdout)["parts"]}
    (baked,) = (tmp_path / "baked" / "cache" / "vllm_cli" / "starts").glob("*.json")
    variables = environment(tmp_path, VCLI_BAKED=str(tmp_path / "baked"))
    with FakeStart(tmp_path, *_VLLM_WORDS, env=variables) as start:
        start.wait_ready()
        start.wait_logged("ready after")
    assert (tmp_path / "cache" / "vllm_cli" / "starts" / baked.name).is_file()


@pytest.mark.thorough
def test_without_a_start_the_model_is_inspected(tmp_path):
    """The inspection runs in a new program, because no forkserver can fork it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["FakeForCausalLM"]}')
    done = _bake_vllm(tmp_path, str(model), "--no-start")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "baked" / "cache" / INSPECTIONS).iterdir())


@pytest.mark.thorough
def test_a_failed_start_keeps_the_earlier_folder(tmp_path):
    done = _bake_vllm(tmp_path, "--no-start", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"]["a start with a request"] == "--no-start"
    before = (tmp_path / "baked" / "manifest.json").read_bytes()
    done = _bake_vllm(tmp_path, "model", "--no-such-flag")
    assert done.returncode == 3
    assert "the start failed" in done.stderr
    assert (tmp_path / "baked" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "baked" in path.name] == ["baked"]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (("model", "--port", "8000", "--max-model-len", "4k"), ("model", "--max-model-len", "4k")),
        (("--host=0.0.0.0", "model"), ("model",)),
        (("model", "--ssl_keyfile", "k.pem", "--ssl-certfile=c.pem"), ("model",)),
        (("model", "--api-key", "--enforce-eager"), ("model", "--enforce-eager")),
        (("model", "--enforce-eager", "-tp", "2"), ("model", "--enforce-eager", "-tp", "2")),
        (("model", "--api-key", "a", "b", "--dtype=auto"), ("model", "--dtype=auto")),
        (("model", "--api_k=a", "--por", "1", "--no-such-flag", "x"), ("model", "--no-such-flag", "x")),
        (("--dtype", "auto", "--", "--port"), ("--dtype", "auto", "--", "--port")),
    ],
    ids=["port", "attached", "certificate", "no-value", "others", "several-keys", "abbreviated", "after-dashes"],
)
def test_addresses_and_keys_are_left_out(arguments, kept):
    left = (option.arguments for option in without_addresses(arguments))
    assert tuple(chain.from_iterable(left)) == kept


def test_a_package_or_the_standard_library_counts_as_compiled_if_most_of_its_modules_are(tmp_path, monkeypatch):
    package = tmp_path / "parcel"
    package.mkdir()
    for name in ("__init__", "a", "b"):
        (package / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_own_bytecode(("parcel",))
    compileall.compile_dir(package, quiet=1)
    assert has_own_bytecode(("parcel",))
    stdlib = tmp_path / "stdlib"
    stdlib.mkdir()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(stdlib))
    assert has_own_bytecode(("no-such-package",))
    (stdlib / "a.py").touch()
    assert not has_own_bytecode(("no-such-package",))


_MIB = 1 << 20


def test_only_the_used_parts_of_a_mapped_file_are_recorded_up_to_its_end(tmp_path):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(32 * _MIB))
    small.write_bytes(bytes(5000))
    with ExitStack() as stack:
        files = (stack.enter_context(path.open("rb")) for path in (large, small))
        parts, whole = (stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) for file in files)
        parts.madvise(mmap.MADV_RANDOM)
        assert parts[0] == parts[24 * _MIB] == 0
        assert not any(whole[:])
        found = {files.path: files for files in used_pages(os.getpid())}
        assert not {str(large), str(small)} & {files.path for files in used_pages(os.getpid(), but=(tmp_path,))}
    assert found[str(small)].ranges == ((0, 5000),)
    assert found[str(large)].size == 32 * _MIB
    first, second = found[str(large)].ranges
    assert first[0] == 0
    assert second[0] <= 24 * _MIB < sum(second)
    assert first[1] + second[1] < 16 * _MIB  # the kernel maps up to a huge page around each


def _fill(folder: Path, location: object, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        (model / "config.json").write_text('{"architectures": ["FakeForCausalLM"], "hidden_size": 8}')
    env = environment(folder, FAKE_VLLM_COMPILES="1", **variables)
    return run_cli("bake", str(model), "--engine", "vllm", "--compile-cache", str(location), *arguments, env=env)


@pytest.mark.thorough
def test_a_location_is_filled_in_one_command(tmp_path):
    """Also if it has everything already. A new machine then loads the compiled model."""
    for _ in range(2):
        done = _fill(tmp_path, tmp_path / "shared", "--json", "--api-server-count", "2", "--port", "1")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert len(told["archives"]) == 2
        assert all((tmp_path / "shared" / name).is_file() for name in told["archives"])
    assert not (tmp_path / "cache").exists(), "the caches of the user are left alone"
    arguments = (str(tmp_path / "model"), "--compile-cache", f"{tmp_path / 'shared'},require")
    with FakeStart(tmp_path, *arguments, env=environment(tmp_path, FAKE_VLLM_COMPILES="1")) as start:
        start.wait_ready()
        start.wait_logged("compiled model: loaded")
        start.terminate()
    assert [*(tmp_path / "cache/vllm_cli/starts").glob("*.json")]


def _make_public(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o777)


class NotFilled(NamedTuple):
    """A fill job that fails: its location, exit code and message."""

    location: str
    code: int
    message: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}
    prepare: Callable[[Path], None] = str  # type: ignore[assignment]


NOT_FILLED = {
    "unknown address": NotFilled("s3://bucket", 2, "is not a location"),
    "not writable": NotFilled("/proc/shared", 2, "cannot be written to"),
    "writable for others": NotFilled("shared", 2, "is not used", prepare=_make_public),
    "with a folder": NotFilled("shared", 2, "leave --output", ("--output", "baked")),
    "embedded": NotFilled("shared", 2, "is for --engine vllm", ("--engine", "embedded")),
    "start fails": NotFilled("shared", 3, "the start failed", ("--no-such-flag",)),
    "plain start": NotFilled("shared", 3, "without preloading", variables={"VLLM_USE_RUST_FRONTEND": "1"}),
    "no folder": NotFilled("/dev/full/shared", 2, "is not used"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", NOT_FILLED.values(), ids=NOT_FILLED)
def test_a_location_that_is_not_filled_is_exit_code_2_or_3(case, tmp_path):
    case.prepare(tmp_path)
    location = case.location if "/" in case.location else tmp_path / case.location
    done = _fill(tmp_path, location, *case.arguments, **case.variables)
    assert done.returncode == case.code, done.stderr
    assert case.message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [("9.0", ("9.0",)), ("8.0;9.0a+PTX", ("8.0", "9.0")), ("8.0 8.0,12.0f", ("8.0", "12.0"))],
    ids=["one", "as torch lists them", "twice"],
)
def test_architectures_are_given_as_to_torch(text, found):
    assert parse_architectures(text) == found


@pytest.mark.parametrize("text", ["", ";", "sm_90", "90", "9.0;Hopper", "9.0.1", "-9.0", "9.0+CUBIN"])
def test_other_words_are_no_architecture(text, tmp_path, invoke):
    done = invoke("bake", "model", "--engine", "vllm", f"--gpu-arch={text}", "--output", tmp_path / "baked")
    assert done.returncode == 2
    assert "Give compute capabilities" in done.stderr
    assert not (tmp_path / "baked").exists()
