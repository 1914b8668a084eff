"""A script for vLLM's Python: records facts of vLLM's parser, and reads words with this parser.

`python vllm_parser.py QUESTION ANSWER`: the question has `lines` of words. The answer has the recorded
`facts`, and `readings` with one `tests.support.reading.Reading` for each line.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from startup.vllm_words.facts import KeptFacts, VllmFacts
from startup.vllm_words.installed import require_vllm
from tests.support.reading import read_both


def main(question: str, answer: str) -> None:
    lines = json.loads(Path(question).read_text())["lines"]
    os.environ["VLLM_CACHE_ROOT"] = f"{answer}.cache"
    facts = record()
    with contextlib.redirect_stderr(io.StringIO()):
        readings = [read_both(words, facts, parse) for words in lines]
    Path(answer).write_text(json.dumps({"facts": facts, "readings": readings}))


def record() -> VllmFacts:
    """Imports the installed vLLM, and records its facts in the cache folder."""
    kept = KeptFacts(require_vllm())
    importlib.import_module("vllm.entrypoints.cli.serve")

    kept.record(imports_all=True)
    return kept.read()


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parses words as `vllm serve` does."""
    sys.argv = ["vllm", "serve", *words]
    return build_parser().parse_args()


@cache
def build_parser() -> argparse.ArgumentParser:
    """vLLM's parser, with the command `serve`."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = FlexibleArgumentParser()
    parser.add_argument("-v", "--version", action="version", version="0")
    (command,) = cmd_init()
    command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    return parser


if __name__ == "__main__":
    main(*sys.argv[1:])
