"""Packages without compiled modules are found."""

import compileall
from pathlib import Path

import pytest

from vllm_cli.bake.own_bytecode import has_own_bytecode


def test_a_package_counts_as_compiled_if_most_of_its_modules_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "parcel"
    package.mkdir()
    for name in ("__init__", "a", "b"):
        (package / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_own_bytecode(("parcel",))
    compileall.compile_dir(package, quiet=1)
    assert has_own_bytecode(("parcel",))


def test_a_package_that_is_not_installed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert has_own_bytecode(("no-such-package",))
    (tmp_path / "a.py").touch()
    assert not has_own_bytecode(("no-such-package",))
