"""Reads the command line of `vllm serve` once, for the checks, for the list of model files, and for vLLM."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from base.server_settings import SHUTDOWN_TIMEOUT_S
from base.wording import list_some
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.model_request import LLAMA_ORIGINALS, ModelRequest, read_adapters, read_draft
from startup.settings.config_file import ConfigFile
from startup.settings.flag import Flag, GivenFlag, GivenFlags, merge, nest
from startup.settings.serve_words import OMNI, Given, cut, is_flag_like, is_for_information, split, with_values
from startup.vllm_words.facts import VllmFacts, read_facts
from startup.vllm_words.flags import Flags, flags_that_change
from startup.vllm_words.installed import InstalledVllm, find_vllm

CONFIG: Final = "--config"
_MODEL: Final = "--model"
_TOKENIZER: Final = "--tokenizer"
_SERVED_NAME: Final = "--served-model-name"
_SHUTDOWN_TIMEOUT: Final = "--shutdown-timeout"
_LEVEL: Final = "--optimization-level"
_DEFAULT_PORT: Final = "8000"
_YAML: Final = ("yaml", "yml")
_MAX_MATCHES: Final = 5


@dataclass(frozen=True)
class CommandLine(GivenFlags):
    """The flags of a start of vLLM: first the flags in the file of `--config`, then those in the words."""

    pieces: tuple[Given, ...]
    """The words after `vllm serve`, unchanged."""
    flags: tuple[GivenFlag, ...]
    model: str | None
    config: ConfigFile | None
    """The file of `--config FILE`. vLLM ignores the form `--config=FILE`."""
    facts: VllmFacts
    """The facts about the installed vLLM with which the words were read."""
    problems: tuple[str, ...]
    """Faults that make vLLM exit while it reads the words."""
    unknown: tuple[tuple[str, str], ...]
    """Flags that vLLM does not have, each with its place as in `GivenFlag.where`."""
    unexpected: tuple[str, ...]
    """Words that belong to no flag, except MODEL."""
    _model_word: str | None
    _parts: tuple[Given, ...]
    """All words except MODEL, unchanged."""

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        facts: VllmFacts | None = None,
        read_file: Callable[[str], ConfigFile] = ConfigFile.read,
    ) -> "CommandLine":
        """Reads the words after `vllm serve` and the file of `--config`. The words take precedence."""
        return cls.of_pieces(tuple(cut(words)), facts, read_file)

    @classmethod
    def of_pieces(
        cls,
        pieces: tuple[Given, ...],
        facts: VllmFacts | None = None,
        read_file: Callable[[str], ConfigFile] = ConfigFile.read,
    ) -> "CommandLine":
        """Reads words that `cut` has divided."""
        vllm = find_vllm() if facts is None else None
        if facts is None:
            facts = read_facts(vllm) if vllm else VllmFacts()
        reading = Reading(Flags(facts.flags))
        parts = list(_parts(pieces, reading.known))
        model_word = _take_model(parts, reading.known, vllm)
        configs = [part for part in parts if part.words[0] == CONFIG and len(part.words) > 1]
        config = read_file(configs[0].words[1]) if configs else None
        if config is not None:
            for name, value in config.settings.items():
                reading.add_setting(name, value, config.place(name))
        reading.add(part for part in parts if part not in configs)
        reading.join_keys()
        if model_word is not None and any(part.flag == _MODEL and any(part.values) for part in parts):
            reading.others.append(model_word)
        in_words_first = sorted(reading.flags, key=lambda flag: bool(flag.where))
        named = (flag.text for flag in in_words_first if flag.name == _MODEL)
        return cls(
            pieces=pieces,
            flags=tuple(reading.flags),
            model=model_word or next(filter(None, named), None),
            config=config,
            facts=facts,
            problems=(*_problems(parts, model_word, config), *reading.problems),
            unknown=tuple(reading.unknown),
            unexpected=tuple(reading.others),
            _model_word=model_word,
            _parts=tuple(parts),
        )

    def read_again(self, facts: VllmFacts) -> "CommandLine":
        """Reads the same arguments and the same content of the file by other facts."""
        return CommandLine.of_pieces(self.pieces, facts, lambda path: self.config or ConfigFile.read(path))

    @property
    def in_file(self) -> list[GivenFlag]:
        """The settings in the file of `--config`, including settings that a word overrides."""
        return [flag for flag in self.flags if flag.where]

    @property
    def words(self) -> tuple[str, ...]:
        """The words for vLLM. MODEL comes first, where vLLM accepts it, and all other words are unchanged."""
        model = () if self._model_word is None else (self._model_word,)
        return (*model, *(word for part in self._parts for word in part.words))

    def last(self, name: str) -> GivenFlag | None:
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)

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
            ignore_patterns=self.values("--ignore-patterns") or (LLAMA_ORIGINALS,),
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
        return is_for_information(self.words)

    @property
    def is_eager(self) -> bool:
        """Whether torch's compiler is switched off."""
        return self.has("--enforce-eager") or self.value(_LEVEL) in ("0", ".mode=0")

    @property
    def flags_of_modules(self) -> tuple[str, ...]:
        """The flags that change which modules are imported, with their values."""
        relevant = (flag for flag in self.flags if flag.name in flags_that_change("modules"))
        return tuple(word for flag in relevant for word in (flag.option, *flag.values))

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
        known = Flags(self.facts.flags)
        unsure = tuple(each.option for each in self.flags if len(each.option) > 2 and each.option not in known)
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

    def with_drain(self) -> "CommandLine":
        """Returns the line with our default of `--shutdown-timeout`. vLLM's default, 0, cuts requests off."""
        return self._with_default(_SHUTDOWN_TIMEOUT, f"{SHUTDOWN_TIMEOUT_S:g}")

    def with_served_name(self) -> "CommandLine":
        """Sets --served-model-name to the model's name, because vLLM would use the folder's name offline."""
        assert self.model is not None
        return self._with_default(_SERVED_NAME, self.model)

    def _with_default(self, name: str, value: str) -> "CommandLine":
        """Returns the line with this flag before all others, unless the flag is given."""
        return self if self.last(name) is not None else replace(self, _parts=(Given((name, value), name), *self._parts))

    def with_paths(self, paths: Mapping[str, str]) -> "CommandLine":
        """Returns the line with paths instead of the names of model and tokenizer. `paths`: name -> path."""
        tokenizer, model = paths.get(self.value(_TOKENIZER) or ""), paths.get(self.model or "")
        line = self if tokenizer is None else self.with_last(_TOKENIZER, tokenizer)
        if model is None:
            return line
        parts = tuple(part for part in line._parts if part.flag != _MODEL)
        return replace(line, _parts=parts, _model_word=model)

    def with_last(self, name: str, value: str) -> "CommandLine":
        """Returns the line with this flag after all others, so that it takes precedence."""
        words = [part.words[0] for part in self._parts]
        place = words.index("--") if "--" in words else len(words)
        parts = (*self._parts[:place], Given((name, value), name), *self._parts[place:])
        return replace(self, _parts=parts, flags=(*self.flags, GivenFlag(Flag((name,), "unknown"), (value,), name)))


def _parts(pieces: Sequence[Given], known: Flags) -> Iterator[Given]:
    """Yields flags with their values, and other words. Each word after `--` is a part of its own."""
    for part in with_values(pieces, known.num_values):
        yield from map(Given, ([word] for word in part.words)) if part.words[0] == "--" else (part,)


def _take_model(parts: list[Given], known: Flags, vllm: InstalledVllm | None) -> str | None:
    """Removes MODEL from the words and returns it. None if MODEL is missing or cannot be recognized.

    After a flag, MODEL looks like a value of the flag. Only the installed vLLM's flags show the difference.
    """
    place = next((place for place, part in enumerate(parts) if not part.flag and part.words[0] != "--"), None)
    is_sure = known.is_recorded or (vllm is not None and vllm.is_tested)
    is_named_by_flag = any(part.flag in (CONFIG, _MODEL) or part.words[0] == OMNI for part in parts)
    if place is None or (place > 0 and (is_named_by_flag or not is_sure)):
        return None
    return parts.pop(place).words[0]


def _problems(parts: Sequence[Given], model_word: str | None, config: ConfigFile | None) -> Iterator[str]:
    """Yields faults that make vLLM exit before argparse reads the words."""
    names = [part.flag for part in parts]
    has_model = model_word is not None or _MODEL in names
    if _SERVED_NAME in names and not has_model and CONFIG not in names:
        yield "--served-model-name needs MODEL as the first word after `serve`"
    configs = [part for part in parts if part.words[0] == CONFIG]
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
        yield f"no model: give MODEL as the first word after `serve`, or `model:` in {config.path}"


@dataclass
class Reading:
    """argparse's result for some words, and the faults that argparse would report.

    As vLLM's `FlexibleArgumentParser`, it completes names, counts values, and joins keys to JSON.
    `preflight.arguments` converts the values later.
    """

    known: Flags
    flags: list[GivenFlag] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """MODEL, and words that belong to no flag."""
    unknown: list[tuple[str, str]] = field(default_factory=list)
    """Unknown flags, each with its place as in `GivenFlag.where`."""
    problems: list[str] = field(default_factory=list)
    """Faults that make vLLM exit while it reads the words."""
    _keyed: dict[str, tuple[GivenFlag, dict[str, Any]]] = field(default_factory=dict)

    def add(self, parts: Iterable[Given], where: str = "") -> None:
        """Adds the flags and words that `split` has found."""
        for part in parts:
            if not part.flag:
                self.others += part.words[1:] if part.words[0] == "--" else part.words
            elif (flag := self._find(part, where)) is not None:
                self._add_flag(flag, part)

    def add_setting(self, name: str, value: Any, where: str) -> None:
        """Adds a setting of the file as words, as vLLM does. A setting that is `false` adds no word."""
        self.add(split(_words_of_setting(name, value), self.known.num_values), where)

    def join_keys(self) -> None:
        """Adds `--flag {"a": {"b": 1}, "c": 2}` for `--flag.a.b 1 --flag.c 2`, after all other flags."""
        self.flags += [flag._replace(values=(json.dumps(content),)) for flag, content in self._keyed.values()]

    def _find(self, part: Given, where: str) -> GivenFlag | None:
        name, values = part.flag, tuple(part.values)
        options = self.known.complete(name)
        if not options and name[:2] != "--" and self.known.complete(name[:2]) == [name[:2]]:  # such as -qawq
            options, values = [name[:2]], (part.words[0][2:],)
        if len(options) == 1 and (found := self.known.find(options[0])) is not None:
            return GivenFlag(found, values, options[0], where)
        if self.known.is_recorded and not options:
            self.unknown.append((name, where))
            return None
        if name in REPLACEMENTS and options:
            self._complain(f"vLLM has no flag {name}{did_you_mean(name, ())}", where)
        elif options:
            self._complain(f"{name} may stand for {list_some(options, _MAX_MATCHES)}: write the whole name", where)
        return GivenFlag(Flag((name,), nargs="?", is_optional=True), values, name, where)

    def _add_flag(self, flag: GivenFlag, part: Given) -> None:
        if part.keys:
            if not flag.values:
                self._complain(f"{part.name} needs a value", flag.where)
                return
            _, content = self._keyed.setdefault(part.flag, (flag, {}))
            merge(content, nest(part.keys, flag.values[0]))
            return
        if self.known.is_recorded and (problem := _count_problem(flag, part)) is not None:
            self._complain(f"{flag.name} {problem}", flag.where)
        self.flags.append(flag)

    def _complain(self, problem: str, where: str) -> None:
        self.problems.append(f"{where}: {problem}" if where else problem)


def _words_of_setting(name: str, value: Any) -> Iterator[str]:
    items = value if isinstance(value, list) else [json.dumps(value, default=str) if isinstance(value, dict) else value]
    if value is not False and items:
        yield f"--{name}"
        yield from () if value is True else map(str, items)


def _count_problem(flag: GivenFlag, part: Given) -> str | None:
    """Why argparse rejects the number of values. None if argparse accepts the number."""
    is_attached = len(part.words) == 1 and bool(flag.values)
    if flag.flag.nargs == 0:
        return f"ignored explicit argument {flag.values[0]!r}" if is_attached else None
    if flag.flag.nargs == "?" or is_attached or (flag.values and not is_flag_like(flag.values[0])):
        return None
    return "needs one argument" if flag.flag.nargs == 1 else "needs at least one argument"
