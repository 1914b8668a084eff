"""A script for vLLM's Python: records vLLM, and reads arguments with vLLM's parser, and variables.

`python vllm_parser.py QUESTION ANSWER`: the question has `lines` of arguments, `texts` for variables, and
`logs`, groups of variables of vLLM's log. The answer has the `record`, `readings` with one
`tests.support.reading.Reading` for each line, `refused` with each variable and each text that vLLM rejects as
its value, and `logs` with whether vLLM can log with each group. If the question has `values`, the answer has
`objects`: each flag with JSON objects that have one of these values in a field, and whether vLLM accepts it.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from envs.environment import overlaid
from startup.vllm_arguments.installed import require_vllm
from startup.vllm_arguments.json_shape import Shape
from startup.vllm_arguments.vllm_record import RecordFile, VllmRecord, _build_parser
from tests.support.reading import read_both


def main(question: str, answer: str) -> None:
    asked = json.loads(Path(question).read_text())
    os.environ["VLLM_CACHE_ROOT"] = f"{answer}.cache"
    record = record_vllm()
    with contextlib.redirect_stderr(io.StringIO()):
        readings = [read_both(arguments, record, parse) for arguments in asked["lines"]]
        logs = [_can_log(variables) for variables in asked.get("logs", ())]
    choices = {choice for flag in record.variables for choice in flag.choices or ()}
    texts = {*asked["texts"], *choices, *map(str.swapcase, choices)} if "texts" in asked else ()
    refused = [(name, text) for name in _variables() for text in sorted(texts) if not _takes(name, text)]
    objects = [*_try_objects(record, asked.get("values", ()))]
    answers = {"record": record, "readings": readings, "refused": refused, "logs": logs, "objects": objects}
    Path(answer).write_text(json.dumps(answers))


def record_vllm() -> VllmRecord:
    """Imports the installed vLLM, and records it in the cache folder."""
    kept = RecordFile(require_vllm())
    importlib.import_module("vllm.entrypoints.cli.serve")

    kept.update(imports_all=True)
    return kept.read()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses arguments as `vllm serve` does."""
    sys.argv = ["vllm", "serve", *arguments]
    return build_parser().parse_args()


def _variables() -> dict[str, Callable[[], Any]]:
    from vllm.envs import environment_variables

    return environment_variables


def _takes(name: str, text: str) -> bool:
    with overlaid({name: text}):
        try:
            _variables()[name]()
        except ValueError:
            return False
    return True


def _can_log(variables: dict[str, str]) -> bool:
    """Whether vLLM can set up its log in a process with these variables."""
    if not (pid := os.fork()):
        os.environ.update(variables)
        with contextlib.suppress(Exception):
            importlib.import_module("vllm.logger")._configure_vllm_root_logger()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _try_objects(record: VllmRecord, values: Sequence[Any]) -> Iterator[tuple[str, str, bool]]:
    actions = _build_parser()._option_string_actions
    for flag in record.flags:
        convert = actions[flag.name].type
        for content in _objects(flag.shape, values) if flag.kind == "object" and values else ():
            text = json.dumps(content)
            is_accepted = False
            with contextlib.suppress(Exception):
                convert(text)
                is_accepted = True
            yield flag.name, text, is_accepted


def _objects(shape: Shape, values: Sequence[Any]) -> Iterator[Any]:
    """The values, and those in each place that the shape has: fields, items, and choices in any writing."""
    yield from values
    for choice in shape.choices:
        text = str(choice)
        yield from (choice, text, text.swapcase(), text.replace("_", "-"), text.lower().replace("_", "-"))
    for part in shape.parts:
        yield from _objects(part, values)
        if shape.kind in ("list", "dict"):
            yield from ([each] if shape.kind == "list" else {"full_attention": each} for each in _objects(part, values))
    for name, part in shape.fields.items():
        yield from ({name: each} for each in _objects(part, values))


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
