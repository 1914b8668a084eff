"""Converts the flags of `serve` for a GGUF model to flags of llama-server, which then serves the model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from base.wording import list_some
from router.model_entry import PORT, ForeignCommand, ModelEntry
from startup.arguments.embedded_line import parse_line
from startup.arguments.errors import InputError
from startup.arguments.serve_command import config_of
from startup.files.model.file_faults import first_problem
from startup.files.model.gguf import LLAMA_SERVER, GgufModel
from startup.files.model.hub_settings import is_offline
from startup.settings.config import StartupConfig
from startup.settings.serve_arguments import CommandLine, ParsedOption

_COUNTERPARTS: Final = frozenset(
    (
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--seed",
        "--chat-template",
        "--default-chat-template-kwargs",
        "--enable-prefix-caching",
        "--runner",
    )
)
_NOTHING: Final = {
    "--enable-auto-tool-choice": ("true", "false"),  # --jinja has it
    "--load-format": ("gguf",),
    "--quantization": ("gguf",),
    "--standby": ("off",),
}
"""Flag -> values without effect for llama-server, in addition to the flag's own neutral values."""


def as_llama_server(entry: ModelEntry, model: GgufModel, parts: Sequence[ParsedOption]) -> ModelEntry:
    """The entry with a command that starts llama-server for the model.

    Args:
        entry: the model's entry with all its names and variables.
        model: the model that llama-server loads.
        parts: MODEL and flags of `serve`, without the flags of the engine and of names.

    Raises:
        ClickException: a flag has no counterpart in llama-server, or a value is not valid.
    """
    line = parse_line(parts)
    if line.faults:
        raise InputError(line.faults[0])
    options = {option.name: option for option in line.options if option.flag and option.flag.role != "both"}
    refused = [name for name, flag in options.items() if name not in _COUNTERPARTS and not _changes_nothing(flag)]
    if refused:
        raise InputError(f"is served by llama-server, which has no counterpart of {', '.join(refused)}: leave them out")
    if problem := first_problem(Path(model.arguments[1]).with_name(name) for name in model.missing):
        raise InputError(f"lacks a part: {problem}")
    if model.missing:
        raise InputError(f"lacks {list_some(model.missing)}: copy them beside {Path(model.arguments[1]).name}")
    used = [options[name] for name in _COUNTERPARTS & options.keys()]
    config = config_of(CommandLine(used, line.others[:1]))
    command = [LLAMA_SERVER, *model.arguments, "--host", "127.0.0.1", "--port", PORT, "--metrics", "--jinja"]
    command += ["--alias", entry.name, *_llama_arguments(options, config)]
    if model.projector is not None:
        command += ["--mmproj", str(model.projector)]
    if model.is_on_hub and is_offline():
        command.append("--offline")
    server = ForeignCommand(arguments=tuple(command), address=f"http://127.0.0.1:{PORT}", port=None)
    return replace(entry, arguments=(), foreign=server, engine="other")


def _changes_nothing(option: ParsedOption) -> bool:
    flag, value = option.flag, option.values[-1]
    assert flag is not None
    return value in (*flag.neutral, *_NOTHING.get(flag.name, ())) or value == (flag.help and str(flag.default).lower())


def _llama_arguments(options: Mapping[str, ParsedOption], config: StartupConfig) -> Iterator[str]:
    """Yields the flags of llama-server. Without --kv-unified, it would divide its context among its slots."""
    engine, renderer = config.engine, config.renderer
    num_slots = engine.max_num_seqs if "--max-num-seqs" in options else None
    if engine.max_model_len is not None:
        yield from ("--ctx-size", str(engine.max_model_len * (num_slots or 1)))
    if num_slots is not None:
        yield from ("--parallel", str(num_slots))
        if engine.max_model_len is None:
            yield "--kv-unified"
    if engine.max_num_batched_tokens is not None:
        yield from ("--batch-size", str(engine.max_num_batched_tokens))
    if "--seed" in options:
        yield from ("--seed", str(engine.seed))
    if (template := options.get("--chat-template")) is not None:
        is_file = Path(template.values[-1]).is_file()
        yield from ("--chat-template-file" if is_file else "--chat-template", template.values[-1])
    if renderer.default_chat_template_kwargs:
        yield from ("--chat-template-kwargs", json.dumps(renderer.default_chat_template_kwargs))
    if not engine.enable_prefix_caching:
        yield "--no-cache-prompt"
    if engine.runner == "pooling":
        yield "--embeddings"
