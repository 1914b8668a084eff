"""Runs vLLM's own tests of its entrypoints against this program: `make test-vllm-suite`.

The first run fills build/vllm-suite with a copy of the tests of vLLM's sdist (without the package `vllm`),
with local models, and with a command `vllm` that runs this program. A virtual environment there adds the
requirements of the tests to the packages of .peers/vllm, or of .peers/NAME if PEER_VLLM is NAME.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tools.vllm_suite.models import prepare_models

_ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
_ENTRYPOINTS: Final = "tests/entrypoints"
_PEER: Final = _ROOT / ".peers" / os.environ.get("PEER_VLLM", "vllm")
_SMOLLM: Final = _ROOT / ".peers" / "model"
_FOLDER: Final = _ROOT / "build" / "vllm-suite"
_SOURCE: Final = _FOLDER / "source"
"""The copy of the source in which the tests run."""
_PYTHON: Final = _FOLDER / "venv" / "bin" / "python"
"""The interpreter of vLLM, with the requirements of the tests."""
_COPIED: Final = ("tests", "examples", "pyproject.toml")
_COMMAND: Final = """#!/bin/sh
# `vllm serve` of the tests: this program with its own engine.
command="$1"
shift
[ "$command" = serve ] && set -- "$@" --engine embedded
exec {vllm_cli} "$command" "$@"
"""
_OPTIONS: Final = ("-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-q", "-ra")
_TEST_TIMEOUT_S: Final = 300


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--server", type=click.Choice(["embedded", "vllm"]), default="embedded", help="What the tests start.")
@click.option("--source", type=Path, help="vLLM's source tree, instead of the sdist of the release in .peers.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def main(*, server: str, source: Path | None, words: Sequence[str]) -> None:
    """Run the tests in vLLM's tests/entrypoints, or only the ones named by WORDS (`pooling/embed`).

    Other WORDS are options of pytest. With `--server vllm`, plain vLLM runs the tests that the embedded
    engine has failed. The outcomes are kept in the repository.
    """
    # The name of the hub's cache changes with models.py, so that models are built again.
    hub_home = _FOLDER / f"hf-{hashlib.sha256((HERE / 'models.py').read_bytes()).hexdigest()[:8]}"
    _prepare_workspace(source, hub_home)
    tests, options = choose_tests(_SOURCE, words)
    report = f"--junitxml={_FOLDER / f'{server}.xml'}"
    os.chdir(_SOURCE)
    command = [_PYTHON, "-m", "pytest", *_OPTIONS, "--timeout", str(_TEST_TIMEOUT_S), report, *options, *tests]
    os.execve(_PYTHON, list(map(str, command)), _environment(server, hub_home))


def choose_tests(source: Path, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the words into tests (paths from the source's root) and others. No test stands for all tests."""
    names = {word: f"{_ENTRYPOINTS}/{word.removeprefix(f'{_ENTRYPOINTS}/')}" for word in words}
    tests = [name for name in names.values() if (source / name.partition("::")[0]).exists()]
    return tests or [_ENTRYPOINTS], [word for word, name in names.items() if name not in tests]


def _environment(server: str, hub_home: Path) -> dict[str, str]:
    programs = _FOLDER / "bin" if server == "embedded" else _PEER / "bin"
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(HERE / "plugin"),
        "VLLM_SUITE_LISTS": str(HERE),
        "VLLM_SUITE_SERVER": server,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(hub_home),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(_FOLDER / f"cache-{server}"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VCLI_STANDBY": "off",
    }


def _prepare_workspace(source: Path | None, hub_home: Path) -> None:
    """Creates the missing parts of the workspace."""
    if not _PEER.is_dir():
        sys.exit(f"{_PEER} must be a virtual environment with vLLM: its tests import vllm")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    _copy_source(_fetch_source() if source is None else source.resolve())
    command = _FOLDER / "bin" / "vllm"
    command.parent.mkdir(exist_ok=True)
    command.write_text(_COMMAND.format(vllm_cli=Path(sys.executable).parent / "vllm-cli"))
    command.chmod(0o755)
    _install_requirements()
    click.echo("Preparing the models")
    prepare_models(hub_home / "hub", _SMOLLM)


def _fetch_source() -> Path:
    """The unpacked sdist of the release in the peer.

    pip unpacks it to read what it requires, which fails without vLLM's build tools, and leaves it there.
    """
    [info] = {path.name for path in _PEER.glob("lib/python*/site-packages/vllm-[0-9]*.dist-info")}
    release = info.removeprefix("vllm-").removesuffix(".dist-info").partition("+")[0]
    folder = _FOLDER / f"sdist-{release}"
    pattern = f"*/*/{_ENTRYPOINTS}"
    if not any(folder.glob(pattern)):
        folder.mkdir(exist_ok=True)
        click.echo(f"Fetching the sdist of vLLM {release}")
        unpack = ("pip", "download", "--no-clean", "--no-deps", "--no-build-isolation", "--no-binary", ":all:")
        command = [_PEER / "bin" / "python", "-m", *unpack, "--dest", folder, f"vllm=={release}"]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True)
        if not any(folder.glob(pattern)):
            sys.exit(f"pip did not unpack the sdist of vLLM {release}:\n{done.stderr}")
    [found] = folder.glob(pattern)
    return found.parents[1]


def _copy_source(vllm_source: Path) -> None:
    """Copies a source once, without the package `vllm`, which would hide the installed one."""
    if not (vllm_source / _ENTRYPOINTS).is_dir():
        sys.exit(f"--source must be a source tree of vLLM with {_ENTRYPOINTS}, got {vllm_source}")
    stamp = _SOURCE / "copied-from"
    if stamp.exists() and stamp.read_text() == str(vllm_source):
        return
    shutil.rmtree(_SOURCE, ignore_errors=True)
    _SOURCE.mkdir()
    for name in _COPIED:
        copy = shutil.copytree if (vllm_source / name).is_dir() else shutil.copyfile
        copy(vllm_source / name, _SOURCE / name)
    stamp.write_text(str(vllm_source))


def _install_requirements() -> None:
    requirements = HERE / "requirements.txt"
    installed = _FOLDER / "venv" / "requirements.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return
    click.echo("Installing the tests' requirements")
    subprocess.run([_PEER / "bin" / "python", "-m", "venv", "--without-pip", _FOLDER / "venv"], check=True)
    [packages] = (_FOLDER / "venv").glob("lib/python*/site-packages")
    [peers] = _PEER.glob("lib/python*/site-packages")
    (packages / "vllm.pth").write_text(f"{peers.resolve()}\n")
    pip = [_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
    subprocess.run(pip, check=True)
    shutil.copyfile(requirements, installed)


if __name__ == "__main__":
    main()
