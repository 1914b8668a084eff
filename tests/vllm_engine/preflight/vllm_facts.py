"""What vLLM accepts, asked of the imported vLLM; run by vLLM's own interpreter.

`python vllm_facts.py QUESTION ANSWER`: the question has the `values` that each flag is tried with. The
answer has `flags`: options, nargs, choices, and which values are accepted.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main(question: str, answer: str) -> None:
    asked = json.loads(Path(question).read_text())
    Path(answer).write_text(json.dumps({"flags": _flags(asked["values"])}))


def _flags(values: list[str]) -> list[dict[str, Any]]:
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))
    return [_flag(parser, action, values) for action in parser._actions if action.option_strings]


def _flag(parser: argparse.ArgumentParser, action: argparse.Action, values: list[str]) -> dict[str, Any]:
    return {
        "options": [option for option, each in parser._option_string_actions.items() if each is action],
        "nargs": action.nargs,
        "choices": None if action.choices is None else sorted(map(str, action.choices)),
        "accepted": [value for value in values if _is_accepted(parser, action, value)],
    }


def _is_accepted(parser: argparse.ArgumentParser, action: argparse.Action, value: str) -> bool:
    try:
        converted = parser._get_value(action, value)
        if not isinstance(action, argparse.BooleanOptionalAction):
            parser._check_value(action, converted)
    except argparse.ArgumentError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
