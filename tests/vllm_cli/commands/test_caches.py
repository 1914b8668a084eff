"""`vllm-cli caches` and `caches prune`, with real records and files."""

import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from startup.compiled_models import local
from startup.compiled_models.record import CompiledModel, FileFacts, Hardware
from startup.imports import learned_imports
from startup.storage.caches import cache_folder
from startup.vllm.launch.plain_state import disable_preloading, plain_states
from startup.vllm.start_kind import EarlierStart, StartKind, has_started_here
from startup.vllm_arguments.installed import InstalledVllm

DAY_S = 86_400
KIB = 1 << 10
VLLM = InstalledVllm("0.32.0+cpu", Path("/nowhere/vllm"))
VERSIONS = {"python": "3.11.7", "vllm": VLLM.version, "torch": "2.9.1"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _compile(name: str, *, days: float = 0.0, num_bytes: int = KIB, **changes: Any) -> None:
    """Writes a compiled model of this machine, last used so many days ago."""
    record = CompiledModel(
        key=name * 64,
        model=f"org/{name}",
        start_id="start",
        digest="",
        early_digest="",
        factors={},
        versions=VERSIONS,
        hardware=Hardware.present(),
        ranks=("rank_0_0",),
        compile_s=16.7,
        created_at="2026-11-23",
    )
    record = replace(record, **changes)
    path = local.compiled_folder() / "torch_aot_compile" / record.key / "rank_0_0" / local.ENTRY
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(num_bytes))
    name = f"vllm/{path.relative_to(local.caches()[local.VLLM])}"
    local.save_record(record.with_files({name: FileFacts(num_bytes, ""), **record.files}))
    used_s = time.time() - days * DAY_S
    os.utime(local.record_path(record), (used_s, used_s))


def _left() -> set[str]:
    return {record.model for record in local.read_records() if local.is_installed(record)}


def test_nothing_is_kept(invoke):
    assert invoke("caches").stdout == "Nothing is kept.\n"
    assert json.loads(invoke("caches", "--json").stdout) == {"kept": [], "preloading_disabled": []}
    done = invoke("caches", "prune", "--all")
    assert (done.returncode, done.stdout) == (0, "Removed nothing.\n")


def test_everything_that_is_kept_is_listed(invoke, cache):
    _compile("a", days=3.5, num_bytes=3 * KIB)
    _compile("b", days=1 / 24, model="org/b\x1b")
    plain = cache / "torch_compile_cache" / "torch_aot_compile" / "plain" / "rank_0_0" / "model"
    plain.parent.mkdir(parents=True)
    plain.write_bytes(bytes(2 * KIB))
    kind = StartKind.of(VLLM, ("-tp", "2"), None)
    EarlierStart(kind).save()
    disable_preloading(kind, "it failed")
    head, *rows, disabled = invoke("caches").stdout.splitlines()
    assert head.split("  ")[0] == "NAME"
    assert [" ".join(row.split()) for row in rows[:3]] == [
        "org/a 3.0 KiB 3 days ago",
        "org/b\\x1b 1.0 KiB 1 hour ago",
        "compiled without a record 2.0 KiB -",
    ]
    assert [row.partition("  ")[0] for row in rows[3:]] == ["latest starts", "reasons of plain starts"]
    assert f"Not preloaded on {platform.node()}: vLLM 0.32.0+cpu, any model -tp 2: it failed; it preloads" in disabled
    assert disabled.endswith(" UTC on, or after `vllm-cli caches prune --plain-starts`")
    shown = json.loads(invoke("caches", "--json").stdout)
    assert (shown["kept"][0]["name"], shown["kept"][0]["num_bytes"]) == ("org/a", 3 * KIB)
    assert shown["kept"][0]["age_s"] == pytest.approx(3.5 * DAY_S, abs=60)
    assert [each["reason"] for each in shown["preloading_disabled"]] == ["it failed"]


def test_only_reasons_of_plain_starts_are_removed(invoke):
    kind = StartKind.of(VLLM, (), None)
    disable_preloading(kind, "it failed")
    EarlierStart(kind).save()
    _compile("a")
    done = invoke("caches", "prune", "--plain-starts", "--dry-run")
    assert done.stdout.splitlines()[1].startswith("reasons of plain starts")
    assert len(plain_states()) == 1
    assert invoke("caches", "prune", "--plain-starts").returncode == 0
    assert (plain_states(), _left(), has_started_here(kind)) == ([], {"org/a"}, True)


def test_what_is_older_is_removed(invoke):
    for name, days in (("a", 31), ("b", 29), ("c", -400)):  # the clock was ahead when c was used
        _compile(name, days=days)
    done = invoke("caches", "prune", "--older", "30d", "--dry-run")
    assert done.stdout.splitlines()[0] == "Would remove 1.0 KiB:"
    assert _left() == {"org/a", "org/b", "org/c"}
    done = invoke("caches", "prune", "--older", "30d")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["Removed", "1.0", "KiB:"],
        ["org/a", "1.0", "KiB", "31", "days", "ago"],
    ]
    assert _left() == {"org/b", "org/c"}
    assert "just now" in invoke("caches").stdout


def test_what_was_used_longest_ago_is_removed_until_the_rest_fits(invoke):
    for name, days in (("a", 1), ("b", 3), ("c", 2)):
        _compile(name, days=days)
    done = invoke("caches", "prune", "--keep", "2KiB")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["Removed", "org/b"]
    assert _left() == {"org/a", "org/c"}
    invoke("caches", "prune", "--older", "36h", "--keep", "5GiB")
    assert _left() == {"org/a"}
    invoke("caches", "prune", "--keep", "0")
    assert _left() == set()


def test_further_folders_of_a_compiled_model_go_with_the_last_one_that_uses_them(invoke, cache):
    backbone = cache / "torch_compile_cache" / "hash" / "rank_0_0" / "backbone"
    backbone.parent.mkdir(parents=True)
    backbone.write_bytes(bytes(KIB))
    name = f"vllm/{backbone.relative_to(cache)}"
    for key, days in (("a", 2), ("b", 1)):
        _compile(key, days=days, files={name: FileFacts(KIB, "")})
    assert "org/a " in invoke("caches", "prune", "--keep", "2KiB").stdout
    assert backbone.exists()
    invoke("caches", "prune", "--keep", "1KiB")
    assert list((cache / "torch_compile_cache").iterdir()) == [cache / "torch_compile_cache" / "torch_aot_compile"]


def test_all_removes_everything_of_this_machine(invoke, cache):
    _compile("a")
    backbone = cache / "torch_compile_cache" / "plain" / "rank_0_0" / "backbone"
    backbone.mkdir(parents=True)
    (backbone / "vllm_compile_cache.py").write_bytes(bytes(2 * KIB))
    EarlierStart(StartKind.of(VLLM, (), None)).save()
    for folder in ("plain", "graph-memory"):
        cache_folder().joinpath(folder).mkdir(parents=True)
        (cache_folder() / folder / "kept").write_bytes(b"{}")
    kernel = cache_folder() / "triton" / "KEY" / "k.cubin"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"kernel")
    path = learned_imports.import_file_paths()[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    (local.records_folder() / "old.json").write_text("{}")
    left = local.records_folder() / "incoming-x" / "files"
    left.mkdir(parents=True)
    (left / "half").write_bytes(bytes(3 * KIB))
    shown = invoke("caches", "prune", "--all", "--dry-run").stdout
    kept = ["latest starts", "reasons of plain starts", "measurements for GPUs", "Triton's kernels", "import file"]
    names = ["compiled without a record", *kept]
    assert [line.partition("  ")[0] for line in shown.splitlines()[1:]] == ["org/a", *names]
    assert " 7 bytes " in shown.splitlines()[-1]
    done = invoke("caches", "prune", "--all")
    assert done.returncode == 0
    assert done.stdout == shown.replace("Would remove", "Removed")
    assert [each for each in cache.rglob("*") if each.is_file()] == []
    assert not kernel.parent.exists(), "Triton's lists are by folder"


def test_what_cannot_be_removed_is_an_error(invoke, monkeypatch):
    _compile("a", days=9)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    done = invoke("caches", "prune", "--keep", "0")
    assert done.returncode == 1
    assert f"not all can be removed from {local.compiled_folder()}" in done.stderr
