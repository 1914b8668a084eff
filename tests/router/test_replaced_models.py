"""A model whose files are replaced in place is known anew at its next start. Its entry is unchanged."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.arguments import model_check
from router.model_entry import ServerCall
from router.model_pool import ModelPool
from router.scheduling.terms import Need
from tests.router.arguments.test_single_model import _vllm
from tests.router.conftest import SmallOwner
from tests.router.http.small_router import eventually
from tests.router.test_model_pool import by_name, entry_of, open_pool

MIB = 1 << 20

FACTS: dict[str, Callable[[ModelPool], Any]] = {
    "size": lambda pool: pool.view()[0].size_bytes,
    "need": lambda pool: pool.view()[0].need,
    "need asleep": lambda pool: pool._scheduler.models["a"].rules.asleep,
    "estimates of the meter": lambda pool: dict(pool._meter._estimates["a"]),
    "entry": lambda pool: pool.entries["a"],
}
"""Fact -> how the pool knows it. The entry stands for all facts that a check finds, such as sleep levels."""


@pytest.mark.thorough
@pytest.mark.parametrize("change", ("written", "link", "folder"))
async def test_each_fact_is_known_anew(tmp_path, change):
    """The file is written over, or it is a link that is flipped, or its folder is replaced."""
    folder = tmp_path / "model"
    _write(folder / "m.gguf", MIB)
    link = tmp_path / "link"
    link.symlink_to(folder)
    entry = entry_of("a", "sleeps", str(link / "m.gguf"), sleep=ServerCall("POST", "/s"), wake=ServerCall("POST", "/w"))
    owner = SmallOwner()
    owner.check_again = lambda entry: replace(entry, pinned=True)
    async with open_pool(tmp_path, owner, find_model=lambda _: str(link / "m.gguf")) as pool:
        pool.set_entries(by_name(entry))
        await pool.load("a")
        number = pool._scheduler.models["a"].current.number  # type: ignore[union-attr]
        pool._apply(pool._scheduler.measured(number, Need(270 * MIB), 0.0))
        before = {name: find(pool) for name, find in FACTS.items()}
        await pool.unload("a")
        await pool.load("a")
        assert pool.entries["a"] is entry, "nothing was replaced"
        assert pool._scheduler.models["a"].memory.expected == Need(270 * MIB)
        await pool.unload("a")
        if change == "written":
            _write(folder / "m.gguf", 64 * MIB)
        else:
            _write(tmp_path / "next" / "m.gguf", 64 * MIB)
            (tmp_path / "new-link").symlink_to(tmp_path / "next")
            if change == "link":
                (tmp_path / "new-link").replace(link)
            else:
                folder.rename(tmp_path / "old")
                (tmp_path / "next").rename(folder)
        await pool.load("a")
        after = {name: find(pool) for name, find in FACTS.items()}
        assert [name for name in FACTS if after[name] == before[name]] == []
        assert after["size"] == 64 * MIB
        assert after["need"].ram_bytes > 320 * MIB
        await pool.unload("a")
        assert pool.view()[0].need.ram_bytes > 320 * MIB


async def test_a_model_that_restarts_by_itself_is_known_anew(tmp_path):
    _write(tmp_path / "m.gguf", MIB)
    async with open_pool(tmp_path, only="a", find_model=lambda _: str(tmp_path / "m.gguf")) as pool:
        pool.set_entries(by_name(entry_of("a", "sleeps", str(tmp_path / "m.gguf"), restart_limit=9)))
        await pool.load("a")
        _write(tmp_path / "m.gguf", 64 * MIB)
        pool.process_of("a").process.signal(signal.SIGKILL)  # type: ignore[union-attr]
        await eventually(lambda: pool.view()[0].num_starts == 2 and pool.view()[0].size_bytes == 64 * MIB)


def _write(path: Path, num_bytes: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(num_bytes)


def test_a_further_check_finds_other_sleep_levels(monkeypatch):
    """The model is no plain text model any more, so level 2 would not restore it."""
    monkeypatch.setattr(model_check, "can_sleep", lambda _: "")
    monkeypatch.setattr(model_check, "deepest_level", lambda _: 2)
    options = _vllm("--idle-sleep", "5m")
    (entry,) = options.entries.values()
    assert entry.sleep_levels == (1, 2)
    monkeypatch.setattr(model_check, "deepest_level", lambda _: 1)
    assert options.check_again(entry).sleep_levels == (1,)
