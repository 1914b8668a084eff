"""What vLLM accepts, asked of the imported vLLM; run by vLLM's own interpreter.

`python vllm_facts.py QUESTION ANSWER`: the question has the `values` that each flag and variable is tried
with. The answer has `flags` (options, nargs, choices, and which values are accepted), `variables` (which
values can be read), the names of each registry, and the fields of objects.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(question: str, answer: str) -> None:
    asked = json.loads(Path(question).read_text())
    written = {
        "flags": _flags(asked["values"]),
        "variables": _variables(asked["values"]),
        "registries": _registries(),
    }
    Path(answer).write_text(json.dumps(written))


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


def _variables(values: list[str]) -> dict[str, list[str]]:
    """Of each variable the values that can be read."""
    from vllm import envs

    readable = {}
    for name, getter in envs.environment_variables.items():
        before = os.environ.get(name)
        readable[name] = [value for value in values if _can_read(name, getter, value)]
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
    return readable


def _can_read(name: str, getter: Any, value: str) -> bool:
    os.environ[name] = value
    try:
        getter()
    except Exception:  # noqa: BLE001 - whatever vLLM raises
        return False
    return True


def _registries() -> dict[str, list[str]]:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.transformers_utils.config import _CONFIG_FORMAT_TO_CONFIG_PARSER, _CONFIG_REGISTRY
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    names = {
        "tool_parsers": ToolParserManager.list_registered(),
        "reasoning_parsers": ReasoningParserManager.list_registered(),
        "architectures": ModelRegistry.get_supported_archs(),
        "load_formats": _LOAD_FORMAT_TO_MODEL_LOADER,
        "config_types": _CONFIG_REGISTRY,
        "config_formats": _CONFIG_FORMAT_TO_CONFIG_PARSER,
        "quantization_methods": QUANTIZATION_METHODS,
        "attention_backends": AttentionBackendEnum.__members__,
    }
    return {name: sorted(found) for name, found in names.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
