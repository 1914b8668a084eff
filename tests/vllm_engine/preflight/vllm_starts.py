"""A script for vLLM's Python: runs command lines with vLLM's own code, and reports where they fail.

`python vllm_starts.py QUESTION ANSWER`: the question lists starts with `arguments` and `variables`. For each
start, the answer has the `stage` in which it fails (`parse`, `config` or `serving`), or `done`, and
the `error`. Each start runs in a fork of this process, which has imported vLLM. It runs until vLLM has read
everything that needs no running model: configuration, weights, tokenizer, variables, settings of the HTTP
server.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vllm_engine.preflight.vllm_parser import parse

_ABSENT = ("torchvision", "torchaudio", "terratorch")
"""Packages that some models import, and that this environment of vLLM for CPU does not have."""
_TLS = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers")
_VALIDATORS = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.launcher",
    "vllm.entrypoints.openai.api_server",
)
"""Modules that have `validate_api_server_args` in different versions of vLLM."""


def main(question: str, answer: str) -> None:
    import torch
    import vllm.entrypoints.cli.serve
    import vllm.model_executor.model_loader
    import vllm.model_executor.models.registry

    torch.set_num_threads(1)
    # A fork of this process may import the model's class itself: there is no GPU to keep it from.
    vllm.model_executor.models.registry._run_in_subprocess = lambda function: function()
    time.sleep = lambda seconds: None  # between two attempts to read a faulty file
    sys.meta_path.append(_Absent())
    starts = json.loads(Path(question).read_text())
    answers = [_in_process(start, answer) if _is_read_early(start) else _in_fork(start) for start in starts]
    Path(answer).write_text(json.dumps(answers))


class _Absent(MetaPathFinder, Loader):
    """A finder that replaces missing packages by mocks."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in _ABSENT else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(name=spec.name, __version__="0.0", __path__=[])

    def exec_module(self, module: Any) -> None:
        pass


def _is_read_early(start: dict[str, Any]) -> bool:
    """Whether a library has read one of the start's variables during its import."""
    return any(name.startswith("HF_") for name in start["variables"])


def _in_process(start: dict[str, Any], answer: str) -> dict[str, str]:
    question, written = f"{answer}.question", f"{answer}.one"
    Path(question).write_text(json.dumps([{"arguments": start["arguments"], "variables": {}}]))
    environment = os.environ | start["variables"]
    subprocess.run([sys.executable, "-E", __file__, question, written], env=environment, check=True)
    return json.loads(Path(written).read_text())[0]


def _in_fork(start: dict[str, Any]) -> dict[str, str]:
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        signal.alarm(400)
        os.close(reading)
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(_try(start["arguments"], start["variables"])))
            file.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"stage": "killed", "error": "no answer"}


def _try(arguments: list[str], variables: dict[str, str]) -> dict[str, str]:
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(":"))
    shown = io.StringIO()
    stage = "parse"
    try:
        with contextlib.redirect_stderr(shown):
            args = _parse(arguments)
            stage = "config"
            config = _build(args)
            stage = "serving"
            _prepare_serving(args, config)
    except SystemExit:
        return {"stage": stage, "error": shown.getvalue()[-600:]}
    except BaseException as err:  # noqa: BLE001 - whatever vLLM raises
        return {"stage": stage, "error": f"{type(err).__name__}: {err}"[:600]}
    return {"stage": "done", "error": ""}


def _parse(arguments: list[str]) -> Any:
    from vllm.entrypoints.cli.serve import cmd_init

    args = parse(arguments)
    cmd_init()[0].validate(args)
    if getattr(args, "model_tag", None) is not None:
        args.model = args.model_tag
    return args


def _build(args: Any) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    # Methods that only GPUs compute are valid starts of vLLM, too.
    type(current_platform).verify_quantization = classmethod(lambda cls, name: None)
    if args.tool_parser_plugin and len(args.tool_parser_plugin) > 3:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin and len(args.reasoning_parser_plugin) > 3:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    _find_validator()(args)
    return AsyncEngineArgs.from_cli_args(args).create_engine_config()


def _find_validator() -> Any:
    for name in _VALIDATORS:
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(name).validate_api_server_args
    raise LookupError("validate_api_server_args")


class _AnyModel:
    """A fake model class whose settings of weights all have their defaults."""


def _prepare_serving(args: Any, config: Any) -> None:
    import uvicorn
    from vllm.envs import enable_envs_cache
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    loader = get_model_loader(config.load_config)
    if isinstance(loader, DefaultModelLoader):
        for _ in loader.get_all_weights(config.model_config, _AnyModel()):
            pass
    cached_tokenizer_from_config(config.model_config)
    config.model_config.try_get_generation_config()
    enable_envs_cache()
    tls = {name: getattr(args, name) for name in _TLS}
    uvicorn.Config(lambda: None, log_level=args.uvicorn_log_level, **tls).load()


if __name__ == "__main__":
    main(*sys.argv[1:])
