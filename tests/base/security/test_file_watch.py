"""Detection of changed files."""

import asyncio

import pytest

from base.security.credentials import FileWatch

TIMEOUT_S = 60.0


@pytest.mark.parametrize("way", ["in place", "by a rename", "behind a link", "away and back"])
async def test_every_way_to_change_a_file_is_detected(tmp_path, way):
    file, changed = tmp_path / "file", asyncio.Event()
    if way == "behind a link":  # as Kubernetes replaces secrets
        (tmp_path / "1").write_text("old")
        file.symlink_to("1")
    else:
        file.write_text("old")
    watch = FileWatch([tmp_path / "other", file], changed.set, interval_s=0.02)
    watch.start()
    try:
        if way == "in place":
            file.write_text("newer")
        elif way == "by a rename":
            (tmp_path / "new").write_text("new")
            (tmp_path / "new").replace(file)
        elif way == "behind a link":
            (tmp_path / "2").write_text("new")
            (tmp_path / "link").symlink_to("2")
            (tmp_path / "link").replace(file)
        else:
            file.unlink()
            await asyncio.wait_for(changed.wait(), TIMEOUT_S)
            changed.clear()
            file.write_text("new")
        await asyncio.wait_for(changed.wait(), TIMEOUT_S)
    finally:
        watch.close()
