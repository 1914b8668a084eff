"""Reads the command line of `vllm serve` once, for the checks, for the list of model files, and for vLLM."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from base.server_settings import SHUTDOWN_TIMEOUT_S
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.model_request import LLAMA_ORIGINALS, ModelRequest, read_adapters, read_draft
from startup.settings.config_file import ConfigFile
from startup.settings.engine_line import EngineLine
from startup.settings.flag import Flag
from startup.settings.serve_arguments import (
    OMNI,
    ParsedOption,
    cut,
    is_for_information,
    split,
    with_values,
)
from startup.vllm_arguments.flags import Flags, flags_that_change
from startup.vllm_arguments.installed import InstalledVllm, find_vllm
from startup.vllm_arguments.vllm_record import VllmRecord, read_record

CONFIG: Final = "--config"
_MODEL: Final = "--model"
_TOKENIZER: Final = "--tokenizer"
_SERVED_NAME: Final = "--served-model-name"
_SHUTDOWN_TIMEOUT: Final = "--shutdown-timeout"
_LEVEL: Final = "--optimization-level"
_DEFAULT_PORT: Final = "8000"
_YAML: Final = ("yaml", "yml")
_COMPUTED: Final = ("file_plan", "port", "request")
"""What a changed line computes anew."""


class VllmLine(EngineLine):
    """The arguments after `vllm serve`, with what a start of vLLM asks of them.

    `faults` make vLLM exit at once. `options` begins with those of the file. `others` has no MODEL.
    """

    def __init__(
        self,
        pieces: Sequence[ParsedOption],
        record: VllmRecord | None = None,
        read_file: Callable[[str], ConfigFile] = ConfigFile.read,
    ) -> None:
        """Reads arguments that `cut` has divided, and the file of `--config`. Arguments take precedence."""
        vllm = find_vllm() if record is None else None
        if record is None:
            record = read_record(vllm) if vllm else VllmRecord()
        known = Flags(record.flags)
        super().__init__(known.option_of)
        self.pieces = pieces
        self.record = record
        """The record of the flags by which the arguments are read."""
        parts = [*_parts(pieces, known)]
        self._model_argument = _take_model(parts, known, vllm)
        self._parts: Sequence[ParsedOption] = parts
        """All arguments except MODEL, unchanged."""
        configs = [part for part in parts if part.arguments[0] == CONFIG and len(part.arguments) > 1]
        self.config = read_file(configs[0].arguments[1]) if configs else None
        """The file of `--config FILE`. vLLM ignores the form `--config=FILE`."""
        self.faults += _problems(parts, self._model_argument, self.config)
        if self.config is not None:
            for name, value in self.config.settings.items():
                self.add(split(_arguments_of_setting(name, value), known.num_values), self.config.place(name))
        self.add(part for part in parts if part not in configs)
        self.join_keys()
        if self._model_argument is not None and any(part.typed == _MODEL and any(part.values) for part in parts):
            self.others.append(self._model_argument)
        in_arguments_first = sorted(self.options, key=lambda option: bool(option.where))
        named = (option.text for option in in_arguments_first if option.name == _MODEL)
        self.model = self._model_argument or next(filter(None, named), None)

    @classmethod
    def of(cls, arguments: Sequence[str], record: VllmRecord | None = None) -> "VllmLine":
        """Reads the arguments after `vllm serve`."""
        return cls(cut(arguments), record)

    def read_again(self, record: VllmRecord) -> "VllmLine":
        """Reads the same arguments and the same content of the file by another record."""
        return VllmLine(self.pieces, record, lambda path: self.config or ConfigFile.read(path))

    @property
    def in_file(self) -> list[ParsedOption]:
        """The settings in the file of `--config`, including settings that an argument overrides."""
        return [option for option in self.options if option.where]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments for vLLM. MODEL comes first, where vLLM accepts it. All others are unchanged."""
        model = () if self._model_argument is None else (self._model_argument,)
        return (*model, *(argument for part in self._parts for argument in part.arguments))

    @cached_property
    def request(self) -> ModelRequest:
        """Everything that decides which files vLLM reads."""
        value = self.value
        return ModelRequest(
            engine="vllm",
            model=self.model,
            revision=value("--revision"),
            tokenizer=value("--tokenizer"),
            tokenizer_revision=value("--tokenizer-revision"),
            has_tokenizer=not self.has("--skip-tokenizer-init"),
            hf_config_path=value("--hf-config-path"),
            generation_config=value("--generation-config") or "auto",
            download_dir=value("--download-dir"),
            hf_token=value("--hf-token"),
            load_format=(value("--load-format") or "auto").lower(),
            ignore_patterns=tuple(self.values("--ignore-patterns")) or (LLAMA_ORIGINALS,),
            adapters=tuple(read_adapters(self.values("--lora-modules"), value("--default-mm-loras"))),
            draft=read_draft(value("--speculative-config")),
        )

    @cached_property
    def file_plan(self) -> FilePlan | None:
        """The files that vLLM will read. None if no model is named."""
        return plan_files(self.request) if self.model else None

    @property
    def model_folder(self) -> Path | None:
        """The model's folder. None if it is not on disk."""
        return self.file_plan.model_folder if self.file_plan is not None else None

    @property
    def is_for_help(self) -> bool:
        """Whether vLLM will only print help or its version."""
        return is_for_information(self.arguments)

    @property
    def is_eager(self) -> bool:
        """Whether torch's compiler is switched off."""
        return self.has("--enforce-eager") or self.value(_LEVEL) in ("0", ".mode=0")

    @property
    def flags_of_modules(self) -> tuple[str, ...]:
        """The flags that change which modules are imported, with their values."""
        relevant = (option for option in self.options if option.name in flags_that_change("modules"))
        return tuple(argument for option in relevant for argument in (option.option, *option.values))

    @property
    def listens(self) -> bool:
        """Whether this process or its API servers will listen on a port for HTTP."""
        return not self.has(*flags_that_change("no port")) and self.port is not None

    @property
    def host(self) -> str | None:
        return self.value("--host")

    @property
    def uds(self) -> str | None:
        """Path of the Unix socket to listen on."""
        return self.value("--uds")

    @cached_property
    def port(self) -> int | None:
        """The value of `--port`, or vLLM's default. None if the value is not a number or not known yet.

        Until vLLM's flags are recorded, the port is not known if an unknown name may abbreviate a flag that
        changes it.
        """
        known = Flags(self.record.flags)
        unsure = tuple(each.option for each in self.options if len(each.option) > 2 and each.option not in known)
        if any(name.startswith(unsure) for name in flags_that_change("no port", "address")):
            return None
        with suppress(ValueError):
            return int(self.value("--port") or _DEFAULT_PORT)
        return None

    @property
    def shutdown_timeout_s(self) -> float:
        """How long running requests may take after SIGTERM. vLLM rejects a value that is not a number."""
        with suppress(ValueError):
            return float(self.value(_SHUTDOWN_TIMEOUT) or SHUTDOWN_TIMEOUT_S)
        return SHUTDOWN_TIMEOUT_S

    @property
    def served_name(self) -> str:
        """The model's name in the history of starts."""
        return next(iter(self.values(_SERVED_NAME)), None) or self.model or "vLLM's default model"

    def with_drain(self) -> "VllmLine":
        """Returns the line with our default of `--shutdown-timeout`. vLLM's default, 0, cuts requests off."""
        return self._with_default(_SHUTDOWN_TIMEOUT, f"{SHUTDOWN_TIMEOUT_S:g}")

    def with_served_name(self) -> "VllmLine":
        """Sets --served-model-name to the model's name, because vLLM would use the folder's name offline."""
        assert self.model is not None
        return self._with_default(_SERVED_NAME, self.model)

    def _with_default(self, name: str, value: str) -> "VllmLine":
        """Returns the line with this flag before all others, unless the flag is given."""
        return self if self.last(name) else self._with(_parts=[ParsedOption((name, value), name), *self._parts])

    def with_paths(self, paths: Mapping[str, str]) -> "VllmLine":
        """Returns the line with paths instead of the names of model and tokenizer. `paths`: name -> path."""
        tokenizer, model = paths.get(self.value(_TOKENIZER) or ""), paths.get(self.model or "")
        line = self if tokenizer is None else self.with_last(_TOKENIZER, tokenizer)
        if model is None:
            return line
        return line._with(_parts=[part for part in line._parts if part.typed != _MODEL], _model_argument=model)

    def with_last(self, name: str, value: str) -> "VllmLine":
        """Returns the line with this flag after all others, so that it takes precedence."""
        arguments = [part.arguments[0] for part in self._parts]
        place = arguments.index("--") if "--" in arguments else len(arguments)
        last = ParsedOption.of(Flag((name,), "unknown"), (value,), arguments=(name, value))
        return self._with(_parts=[*self._parts[:place], last, *self._parts[place:]], options=[*self.options, last])

    def _with(self, **changes: Any) -> "VllmLine":
        changed = copy(self)
        for name in _COMPUTED:
            vars(changed).pop(name, None)
        vars(changed).update(changes)
        return changed


def _parts(pieces: Sequence[ParsedOption], known: Flags) -> Iterator[ParsedOption]:
    """Yields flags with their values, and other arguments. Each argument after `--` is a part of its own."""
    for part in with_values(pieces, known.num_values):
        yield from (ParsedOption([argument]) for argument in part.arguments) if part.arguments[0] == "--" else (part,)


def _take_model(parts: list[ParsedOption], known: Flags, vllm: InstalledVllm | None) -> str | None:
    """Removes MODEL from the arguments and returns it. None if MODEL is missing or cannot be recognized.

    After a flag, MODEL looks like a value of the flag. Only the installed vLLM's flags show the difference.
    """
    place = next((place for place, part in enumerate(parts) if not part.typed and part.arguments[0] != "--"), None)
    is_sure = known.is_recorded or (vllm is not None and vllm.is_tested)
    is_named_by_flag = any(part.typed in (CONFIG, _MODEL) or part.arguments[0] == OMNI for part in parts)
    if place is None or (place > 0 and (is_named_by_flag or not is_sure)):
        return None
    return parts.pop(place).arguments[0]


def _problems(parts: Sequence[ParsedOption], model_argument: str | None, config: ConfigFile | None) -> Iterator[str]:
    """Yields faults that make vLLM exit before argparse reads the arguments."""
    names = [part.typed for part in parts]
    has_model = model_argument is not None or _MODEL in names
    if _SERVED_NAME in names and not has_model and CONFIG not in names:
        yield "--served-model-name needs MODEL as the first argument after `serve`"
    configs = [part for part in parts if part.arguments[0] == CONFIG]
    if len(configs) > 1:
        yield "--config is given more than once: vLLM reads one file"
    elif configs and config is None:
        yield "--config needs the path of a YAML file"
    if config is None:
        return
    if config.path.split(".")[-1] not in _YAML:
        yield f"--config {config.path}: vLLM reads only files that end in .yaml or .yml"
    elif config.problem is not None or config.content is None:
        yield f"--config {config.path} {config.problem or 'is empty'}"
    elif not has_model and "model" not in config.settings:
        yield f"no model: give MODEL as the first argument after `serve`, or `model:` in {config.path}"


def _arguments_of_setting(name: str, value: Any) -> Iterator[str]:
    items = value if isinstance(value, list) else [json.dumps(value, default=str) if isinstance(value, dict) else value]
    if value is not False and items:
        yield f"--{name}"
        yield from () if value is True else map(str, items)
