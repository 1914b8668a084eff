"""What vLLM accepts, and what is recorded of it; run by vLLM's own interpreter.

`python vllm_facts.py QUESTION ANSWER`: the question has the `values` that each flag is tried with. The answer
has the recorded `facts`, and for each option of the `flags` which values vLLM and the preflight accept.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from startup.vllm.facts import FlagFact, KeptFacts, VllmFacts
from startup.vllm.installed import require_vllm
from startup.vllm.preflight.flag_values import FlagValueError, parse_value


def main(question: str, answer: str) -> None:
    values = json.loads(Path(question).read_text())["values"]
    os.environ["VLLM_CACHE_ROOT"] = f"{answer}.cache"
    facts = record()
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))
    known = {option: flag for flag in facts.flags for option in (*flag.names, *flag.opposites)}
    flags = [_flag(parser, option, known, values) for option in parser._option_string_actions]
    Path(answer).write_text(json.dumps({"facts": facts, "flags": flags}))


def record() -> VllmFacts:
    """Records the facts of the installed vLLM in the cache folder, with an import of it."""
    kept = KeptFacts(require_vllm())
    importlib.import_module("vllm.entrypoints.cli.serve")

    kept.record(imports_all=True)
    return kept.read()


def _flag(
    parser: argparse.ArgumentParser, option: str, known: dict[str, FlagFact], values: list[str]
) -> dict[str, Any]:
    action, fact = parser._option_string_actions[option], known[option]
    return {
        "option": option,
        "is_same": (fact.nargs, fact.name in action.option_strings) == (action.nargs, True),
        "kind": fact.kind if action.nargs != 0 else "switch",
        "vllm": [value for value in values if _is_accepted(parser, action, value)],
        "preflight": [value for value in values if _passes(fact, value)],
    }


def _is_accepted(parser: argparse.ArgumentParser, action: argparse.Action, value: str) -> bool:
    try:
        converted = parser._get_value(action, value)
        if not isinstance(action, argparse.BooleanOptionalAction):
            parser._check_value(action, converted)
    except argparse.ArgumentError:
        return False
    return True


def _passes(fact: FlagFact, value: str) -> bool:
    try:
        parse_value(fact, value)
    except FlagValueError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
