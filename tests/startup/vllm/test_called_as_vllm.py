"""A link named `vllm` to the console script behaves as vLLM's command, with the fake vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.startup.vllm.fake_start import ROOT, environment

_SCRIPT = f"""#!{sys.executable}
import sys
from vllm_cli.__main__ import main
sys.exit(main())
"""


def _run_link(folder: Path, *words: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    script = folder / "vllm-cli"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    link = folder / "vllm"
    link.symlink_to(script)
    variables = environment(folder, **changes)
    variables["PATH"] = f"{folder}:{variables['PATH']}"  # a program that vLLM looks up by name is the link itself
    return subprocess.run(["vllm", *words], env=variables, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_serve_starts_through_the_launcher(folder: Path) -> None:
    """The flag is the launcher's own."""
    done = _run_link(folder, "serve", "--preflight-only", "--json", "--port", str(free_port()))
    assert "unrecognized arguments" not in done.stderr
    assert json.loads(done.stdout)["findings"] is not None


@pytest.mark.parametrize("words", [("--version",), ("bench", "--help"), ()], ids=" ".join)
def test_other_commands_are_the_installed_vllms(words: tuple[str, ...], folder: Path) -> None:
    plain = [sys.executable, "-m", "vllm.entrypoints.cli.main", *words]
    wanted = subprocess.run(plain, env=environment(folder), capture_output=True, text=True, timeout=120, cwd=ROOT)
    done = _run_link(folder, *words)
    assert (done.returncode, done.stdout, done.stderr) == (wanted.returncode, wanted.stdout, wanted.stderr)


def test_without_vllm_an_error_names_the_environment(folder: Path) -> None:
    done = _run_link(folder, "bench", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert "whose environment has no vLLM" in done.stderr
    assert len(done.stderr.splitlines()) == 1
