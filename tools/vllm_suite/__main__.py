"""Runs vLLM's own tests of its entrypoints against this program: `make test-vllm-suite VLLM_SOURCE=PATH`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tools.vllm_suite.workspace import ENTRYPOINTS, prepare_workspace

_OPTIONS: Final = ("-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-q", "-ra")
_TEST_TIMEOUT_S: Final = 300


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--server", type=click.Choice(["ours", "vllm"]), default="ours", help="Which program the tests start.")
@click.argument("vllm_source", type=click.Path(path_type=Path, exists=True))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def main(*, server: str, vllm_source: Path, words: Sequence[str]) -> None:
    """Run the tests below tests/entrypoints of VLLM_SOURCE, or those that WORDS name (`pooling/embed`).

    Other WORDS are options of pytest. With `--server vllm`, plain vLLM is tested instead, and its results are
    kept in the repository: tests that it does not pass are skipped with this program.
    """
    workspace = prepare_workspace(vllm_source.resolve())
    tests, options = choose_tests(workspace.source, words)
    report = f"--junitxml={workspace.folder / f'{server}.xml'}"
    os.chdir(workspace.source)
    command = [workspace.python, "-m", "pytest", *_OPTIONS, "--timeout", str(_TEST_TIMEOUT_S), report, *options, *tests]
    os.execve(workspace.python, list(map(str, command)), workspace.environment(server))


def choose_tests(source: Path, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that name tests, as paths from the source's root, else all tests; and the other words."""
    names = {word: f"{ENTRYPOINTS}/{word.removeprefix(f'{ENTRYPOINTS}/')}" for word in words}
    tests = [name for name in names.values() if (source / name.partition("::")[0]).exists()]
    return tests or [ENTRYPOINTS], [word for word, name in names.items() if name not in tests]


if __name__ == "__main__":
    main()
