import subprocess
import sys

from base import program_version
from tests.support.peer_vllm import ROOT


def _ask(folder, *options):
    script = "import sys; sys.path.insert(0, sys.argv[1]); import program_version as v; print(v.program_version())"
    command = [sys.executable, *options, "-c", script, folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_an_installed_program_has_the_version_of_its_package():
    assert _ask(ROOT / "base")[0].isdigit()
    assert _ask(ROOT / "base") == program_version.program_version()


def test_a_checkout_that_is_not_installed_serves_without_a_version():
    assert _ask(ROOT / "base", "-I", "-S") == "0+unknown"
