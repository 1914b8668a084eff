"""Shell completion has the right results, and imports no slow modules."""

import json
from pathlib import Path

import pytest

from startup.arguments.supported import SUPPORTED
from tests.support.cli import python_output
from vllm_cli.main import COMMANDS, main

ROOT = Path(__file__).parents[3]
_SCRIPT = """
import json, sys
from vllm_cli.main import main
try:
    main([])
except SystemExit:
    pass
print(json.dumps([name.partition(".")[0] for name in sys.modules]))
"""
STRANGERS = {"torch", "transformers", "tokenizers", "numpy", "yaml", "rich", "aiohttp", "huggingface_hub", "psutil"}


def _set_arguments(monkeypatch, *arguments):
    monkeypatch.setenv("_VLLM_CLI_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "vllm-cli " + " ".join(arguments))
    monkeypatch.setenv("COMP_CWORD", str(len(arguments)))


@pytest.fixture
def complete(tmp_path, monkeypatch, capsys):
    """A function that returns bash's completions of arguments. The last one is incomplete."""
    hub = tmp_path / "hub"
    for name in ("models--org--llama", "models--org--qwen", "models--gpt2"):
        (hub / name / "snapshots").mkdir(parents=True)
    (hub / "models--org--partial").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))

    def run(*arguments: str) -> list[str]:
        _set_arguments(monkeypatch, *arguments)
        with pytest.raises(SystemExit) as done:
            main([])
        out, err = capsys.readouterr()
        assert (done.value.code, err) == (0, "")
        return out.splitlines()

    return run


@pytest.mark.thorough
@pytest.mark.parametrize("arguments", [("serve", ""), ("prefetch", "--po")], ids=" ".join)
def test_completion_imports_no_slow_module(arguments, monkeypatch):
    _set_arguments(monkeypatch, *arguments)
    assert set(json.loads(python_output(_SCRIPT, cwd=ROOT).splitlines()[-1])) & STRANGERS == set()


def test_commands_are_completed_from_the_table(complete):
    assert complete("") == [f"plain,{entry.name}" for entry in COMMANDS]
    assert complete("s") == ["plain,serve", "plain,stop", "plain,standby", "plain,sleep"]
    assert complete("bench", "st") == ["plain,startup"]


def test_flags_of_serve_are_completed_after_any_arguments_and_so_are_their_values(complete):
    expected = [f"plain,{flag.name}" for flag in SUPPORTED if flag.name.startswith("--max-num")]
    assert len(expected) >= 2
    assert complete("serve", "--max-num") == expected
    assert complete("serve", "model", "--port", "nonsense", "--unknown", "--max-num") == expected
    assert "plain,--no-enable-prefix-caching" in complete("serve", "--no-")

    assert complete("serve", "--dtype", "b") == ["plain,bfloat16"]
    assert complete("serve", "--config", "x") == ["file,x"]
    assert complete("serve", "--allowed-local-media-path", "x") == ["dir,x"]


def test_models_in_the_cache_folder_are_completed_or_else_folders(complete):
    assert complete("serve", "") == ["plain,gpt2", "plain,org/llama", "plain,org/qwen"]
    assert complete("serve", "org/l") == ["plain,org/llama"]
    assert complete("serve", "--model", "g") == ["plain,gpt2"]
    assert complete("prefetch", "org/q") == ["plain,org/qwen"]
    assert complete("serve", "./mod") == ["dir,./mod"]
