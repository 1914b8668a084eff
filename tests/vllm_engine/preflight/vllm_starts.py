"""How far vLLM's own code comes with command lines; run by vLLM's own interpreter.

`python vllm_starts.py QUESTION ANSWER`: the question is a list of starts with `words` and `variables`. For
each, the answer has the `stage` that it reaches, `parse`, `config` or `done`, and the `error` that ends it.
Each start runs in a fork of this process, which has imported vLLM, up to the construction of its
configuration.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_MAX_S = 400


def main(question: str, answer: str) -> None:
    import torch
    import vllm.entrypoints.cli.serve
    import vllm.model_executor.model_loader  # noqa: F401

    torch.set_num_threads(1)
    starts = json.loads(Path(question).read_text())
    answers = [_in_process(start, answer) if _is_read_early(start) else _in_fork(start) for start in starts]
    Path(answer).write_text(json.dumps(answers))


def _is_read_early(start: dict[str, Any]) -> bool:
    """Whether a library has read one of the variables when it was imported."""
    return any(name.startswith("HF_") for name in start["variables"])


def _in_process(start: dict[str, Any], answer: str) -> dict[str, str]:
    question, written = f"{answer}.question", f"{answer}.one"
    Path(question).write_text(json.dumps([{"words": start["words"], "variables": {}}]))
    environment = os.environ | start["variables"]
    subprocess.run([sys.executable, "-E", __file__, question, written], env=environment, check=True)
    return json.loads(Path(written).read_text())[0]


def _in_fork(start: dict[str, Any]) -> dict[str, str]:
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        signal.alarm(_MAX_S)
        os.close(reading)
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(_try(start["words"], start["variables"])))
            file.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"stage": "killed", "error": "no answer"}


def _try(words: list[str], variables: dict[str, str]) -> dict[str, str]:
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(":"))
    shown = io.StringIO()
    stage = "parse"
    try:
        with contextlib.redirect_stderr(shown):
            args = _parse(words)
            stage = "config"
            _build(args)
    except SystemExit:
        return {"stage": stage, "error": shown.getvalue()[-600:]}
    except BaseException as err:  # noqa: BLE001 - whatever vLLM raises
        return {"stage": stage, "error": f"{type(err).__name__}: {err}"[:600]}
    return {"stage": "done", "error": ""}


def _parse(words: list[str]) -> Any:
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    sys.argv = ["vllm", "serve", *words]
    parser = FlexibleArgumentParser()
    parser.add_argument("-v", "--version", action="version", version="0")
    subparsers = parser.add_subparsers(required=False, dest="subparser")
    (command,) = cmd_init()
    command.subparser_init(subparsers).set_defaults(dispatch_function=command.cmd)
    args = parser.parse_args()
    command.validate(args)
    if getattr(args, "model_tag", None) is not None:
        args.model = args.model_tag
    return args


def _build(args: Any) -> None:
    from vllm import AsyncEngineArgs
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    if args.enable_auto_tool_choice:
        ToolParserManager.get_tool_parser(args.tool_call_parser)
    AsyncEngineArgs.from_cli_args(args).create_engine_config()


if __name__ == "__main__":
    main(*sys.argv[1:])
