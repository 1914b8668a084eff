"""Options of the benchmarks: errors name the option; neither they nor the help import anything heavy."""

import subprocess
import sys

import pytest

from vllm_cli.main import main

HEAVY = {"aiohttp", "uvloop", "msgspec", "psutil", "asyncio", "PIL", "torch", "prometheus_client"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve"], "Name a server to measure"),
        (["serve", "--url", "ftp://x"], "is not an address"),
        (["serve", "--url", "x", "--concurrency", "1,0"], "is not a list such as 1,8,32"),
        (["serve", "--url", "x", "--concurrency", "one"], "is not a list such as 1,8,32"),
        (["serve", "--url", "x", "--rounds", "0"], "--rounds"),
        (["serve", "--url", "x", "--json", "no-such-folder/result.json"], "is not a file in an existing folder"),
        (["serve", "--cmd", "serve 'unbalanced"], "--cmd"),
        (["startup", "--cmd", "x 'y"], "--cmd"),
        (["startup", "--state", "lukewarm"], "lukewarm"),
        (["startup", "--cmd", "x", "--rounds", "0"], "--rounds"),
        (["startup", "--cmd", "x", "--evict", "no-such-file"], "no-such-file"),
        (["startup", "--cmd", "x", "--json", "no-such-folder/x.json"], "is not a file in an existing folder"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_invalid_options_are_a_usage_error(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_help_and_usage_errors_import_nothing_heavy():
    code = f"""if True:
        import sys
        from vllm_cli.main import main
        for name in ("serve", "startup"):
            assert main(["bench", name, "--help"]) == 0
            assert main(["bench", name, "--rounds", "0"]) == 2
        print("heavy:", *{HEAVY} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
