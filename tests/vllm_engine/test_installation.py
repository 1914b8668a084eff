"""Installing this program into an environment of vLLM adds to it and changes nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.peer_vllm import PYTHON, ROOT

_SOURCES = ("vllm_cli", "startup", "server", "envs", "pyproject.toml", "README.md", "LICENSE")


def test_vllms_packages_stay_as_they_are(tmp_path):
    """Uses a new environment that sees all of vLLM's packages, so that the peer stays unchanged."""
    python = _environment_on_top_of_vllm(tmp_path / "venv")
    before = _freeze(python)
    assert any(line.startswith("vllm") for line in before)
    subprocess.run([python, "-m", "pip", "install", "--quiet", _copy_of_the_sources(tmp_path)], check=True, timeout=280)
    added = _freeze(python) - before
    assert before <= _freeze(python)
    assert {line.partition(" ")[0].partition("==")[0] for line in added} == {"vllm-cli-server"}


def _copy_of_the_sources(folder: Path) -> Path:
    """Building a wheel writes into the source folder."""
    copy = folder / "checkout"
    shutil.copytree(
        ROOT, copy, ignore=lambda path, names: [n for n in names if path == str(ROOT) and n not in _SOURCES]
    )
    return copy


def _environment_on_top_of_vllm(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=280)
    [site_packages] = folder.glob("lib/python3*/site-packages")
    [packages_of_vllm] = PYTHON.parents[1].glob("lib/python3*/site-packages")
    (site_packages / "vllm.pth").write_text(f"{packages_of_vllm}\n")
    return folder / "bin" / "python"


def _freeze(python: Path) -> set[str]:
    done = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True, timeout=280)
    return set(done.stdout.splitlines())
