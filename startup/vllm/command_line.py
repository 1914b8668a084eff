"""The command line of `vllm serve`: the few words that the launcher reads, and its run in this process."""

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from base.exit_codes import INTERRUPTED, USAGE
from base.json_depth import read_json
from base.server_settings import SHUTDOWN_TIMEOUT_S
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.request import LLAMA_ORIGINALS, Adapter, DraftModel, ModelRequest
from startup.ground.config_variables import Replaced, replace_variables
from startup.ground.hooks.hook import Hook, Name, Text
from startup.ground.serve_words import OMNI, is_flag_like, is_for_information, normalise, split
from startup.ground.temp_folder import own_folder
from startup.vllm.facts import FlagFact, read_facts
from startup.vllm.installed import find_vllm
from startup.vllm.known_flags import flags_that_change, may_be_short, may_hide_port, num_values, whole_name

logger = logging.getLogger(__name__)

_MAIN: Final = Name("vllm.entrypoints.cli.main", "main", ())
COMMAND_LINE: Final = Hook(
    "command line",
    does="runs `vllm serve` in the launcher's process",
    without="vLLM runs as a new program",
    needs=(_MAIN,),
    is_essential=True,
)

_LOG_FILE: Final = re.compile(r"^(--(?=[\w-]+(?:=|\Z))|(?=[\w-]+\s*:))log[-_]config[-_]file(?![\w-])", re.MULTILINE)
"""The flag as a word, or as the key of a file."""
_LOG_SETTING: Final = r"\1logging-config.pylogging_config_file"
_PARSERS: Final = ("vllm.engine.arg_utils", "vllm.entrypoints.launchers.cli_args")
_TAKES_LOG_FILE: Final = Text(_PARSERS, r"^    log_config_file:", "--log-config-file")
_TAKES_LOG_SETTING: Final = Text(("vllm.config.logging",), r"^    pylogging_config_file:", "--logging-config")

_CONFIG: Final = "--config"

_LEVEL: Final = re.compile(r"-O.")
"""`-O3` and `-O.mode=3` have their value attached."""

_SWITCH: Final = re.compile(
    r"--(?:(?:no|enable|disable|skip|trust|use)-(?!access-log-for-endpoints).*|async-scheduling|enforce-eager|grpc|"
    r"headless|language-model-only)|-ep|-dp[ehm]"
)
"""The common switches of tested releases, by which MODEL is found before vLLM's flags are recorded."""

_DEFAULT_PORT: Final = 8000
_SHUTDOWN_TIMEOUT: Final = "--shutdown-timeout"
_SERVED_NAME: Final = "--served-model-name"

_SPECULATIVE: Final = ("--speculative-config", "-sc")
_NO_DRAFTS: Final = ("ngram", "ngram_gpu", "[ngram]", "suffix", "extract_hidden_states", "custom_class")
"""Values of `model` and `method` of --speculative-config with which no draft model is read."""


@dataclass(frozen=True)
class CommandLine:
    """The words of the command line, and what can be read from them without vLLM's parser."""

    words: tuple[str, ...]
    """MODEL first, if it is a word of its own."""
    values: Mapping[str, str]
    """Flags, with dashes instead of underscores, and their last values; a switch has an empty value."""
    model: str | None
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """All values of the flags that take several."""
    in_file: Mapping[str, str] = field(default_factory=dict)
    """The settings of the file of `--config`, also where a word takes precedence."""

    @classmethod
    def of(cls, words: Sequence[str]) -> "CommandLine":
        """Reads the words and the file of `--config`; the words take precedence."""
        words = _with_model_first(_with_whole_names(_with_present_flags(words)))
        flags = [given for given in split(words, num_values) if given.flag]
        values = {given.name: given.values[0] if given.values else "" for given in flags}
        lists = {given.name: tuple(given.values) for given in flags if num_values(given.name) == "+"}
        settings = _config_file(words)
        in_file = {name: _as_list(settings[name]) for name in settings if num_values(name) == "+"}
        model = settings.get("--model-tag") or settings.get("--model") or values.get("--model")
        if words and not words[0].startswith("-"):
            model = words[0]
        return cls(tuple(words), {**settings, **values}, model, {**in_file, **lists}, settings)

    @cached_property
    def request(self) -> ModelRequest:
        """All that decides which files vLLM reads."""
        return read_model_request(self.model, self.values, self.lists)

    @cached_property
    def file_plan(self) -> FilePlan | None:
        """The files that vLLM will read; None if no model is named."""
        return plan_files(self.request) if self.model else None

    @property
    def model_folder(self) -> Path | None:
        """The model's folder; None if it is not on disk."""
        return self.file_plan.model_folder if self.file_plan is not None else None

    def has(self, *names: str) -> bool:
        """Whether one of the flags is given."""
        return any(name in self.values and self.values[name].lower() != "false" for name in names)

    @property
    def is_for_help(self) -> bool:
        """Whether vLLM will print help or its version and exit."""
        return is_for_information(self.words)

    @property
    def listens(self) -> bool:
        """Whether this process or its API servers will listen on one port."""
        return not self.has(*flags_that_change("no port")) and self.port is not None

    @property
    def host(self) -> str | None:
        """The value of `--host`; None if it is missing or empty."""
        return self.values.get("--host") or None

    @property
    def port(self) -> int | None:
        """The value of `--port` or vLLM's default; None if it is not a number, or cannot be known yet.

        vLLM rejects what is not a number. Before its flags are recorded, an abbreviation may be ambiguous.
        """
        with suppress(ValueError):
            if any(map(may_hide_port, self.values)):
                return None
            return int(self.values.get("--port", _DEFAULT_PORT))
        return None

    @property
    def uds(self) -> str | None:
        """Path of the Unix socket to listen on, if `--uds` is given."""
        return self.values.get("--uds") or None

    @property
    def has_shutdown_timeout(self) -> bool:
        """Whether `--shutdown-timeout` is given."""
        return _SHUTDOWN_TIMEOUT in self.values

    @property
    def words_with_drain(self) -> tuple[str, ...]:
        """With our default of `--shutdown-timeout`: vLLM's own, 0, breaks running requests off."""
        return self._words_with(_SHUTDOWN_TIMEOUT, f"{SHUTDOWN_TIMEOUT_S:g}")

    def with_served_name(self) -> "CommandLine":
        """With the model's name as --served-model-name: offline, vLLM would name it by its folder."""
        assert self.model is not None
        return replace(self, words=self._words_with(_SERVED_NAME, self.model))

    def with_port(self, port: str) -> "CommandLine":
        """With the port that the system has chosen for `--port 0`."""
        place = self.words.index("--") if "--" in self.words else len(self.words)
        words = (*self.words[:place], "--port", port, *self.words[place:])
        return replace(self, words=words, values={**self.values, "--port": port})

    def _words_with(self, flag: str, default: str) -> tuple[str, ...]:
        """With the flag in front of all others, so that one that is given wins."""
        if flag in self.values:
            return self.words
        num_positional = int(bool(self.words) and not self.words[0].startswith("-"))
        return (*self.words[:num_positional], flag, default, *self.words[num_positional:])

    @property
    def served_name(self) -> str:
        """The model's name in the history of starts."""
        return self.values.get("--served-model-name") or self.model or "vLLM's default model"


def _with_present_flags(words: Sequence[str]) -> Sequence[str]:
    """For a vLLM without `--log-config-file`: with the setting that has replaced it, if it has that."""
    return [*map(_with_present_flag, words)]


def _with_present_flag(text: str) -> str:
    """A word of the command line, or the file of `--config`."""
    if not _LOG_FILE.search(text) or _TAKES_LOG_FILE.is_found() or not _TAKES_LOG_SETTING.is_found():
        return text
    return _LOG_FILE.sub(_LOG_SETTING, text)


def _with_whole_names(words: Sequence[str]) -> Sequence[str]:
    """The same words with the whole names of abbreviated flags, as argparse reads them."""
    end = words.index("--") if "--" in words else len(words)
    names = [normalise(word.partition("=")[0].partition(".")[0]) if is_flag_like(word) else "" for word in words[:end]]
    if not any(map(may_be_short, names)):
        return words
    vllm = find_vllm()
    known = _numbers_of_values(read_facts(vllm).flags) if vllm else {}
    whole = [whole_name(name, known) if may_be_short(name) else name for name in names]
    changed = zip(words, names, whole, strict=False)
    return [*(new + word[len(old) :] if new != old else word for word, old, new in changed), *words[end:]]


def _with_model_first(words: Sequence[str]) -> Sequence[str]:
    """The same words with MODEL in front, where everything here looks for it.

    Behind a flag, only the flags of the installed vLLM distinguish MODEL from a value.
    """
    is_named_by_flag = _CONFIG in words or any(normalise(word.partition("=")[0]) == "--model" for word in words)
    if all(map(is_flag_like, words)) or not is_flag_like(words[0]) or is_named_by_flag or OMNI in words:
        return words
    if (vllm := find_vllm()) is None:
        return words
    numbers = _numbers_of_values(read_facts(vllm).flags)
    if not numbers and not vllm.is_tested:
        return words
    number_of = (lambda name: numbers.get(name, "?")) if numbers else _usual_number
    place = 0
    for given in split(words, lambda name: 0 if _LEVEL.match(name) else number_of(name)):
        if given.words[0] == "--":
            place += 1
        if not given.flag and place < len(words):
            return (words[place], *words[:place], *words[place + 1 :])
        place += len(given.words)
    return words


def _usual_number(name: str) -> int | str:
    """How many values a flag of a tested release takes."""
    return 0 if _SWITCH.fullmatch(name) else "+" if num_values(name) == "+" else 1


def _numbers_of_values(flags: Iterable[FlagFact]) -> dict[str, int | str]:
    """For each name of a flag, how many values it takes, as argparse's `nargs`."""
    numbers: dict[str, int | str] = {}
    for flag in flags:
        numbers |= dict.fromkeys(flag.names, 1 if flag.nargs is None else flag.nargs)
        numbers |= dict.fromkeys(flag.opposites, 0)
    return numbers


def _config_file(words: Sequence[str]) -> dict[str, str]:
    """The settings of vLLM's YAML file as flags; empty for an unreadable file, which vLLM will reject.

    vLLM reads the file of `--config FILE`, and ignores that of `--config=FILE`.
    """
    with suppress(OSError, ImportError, ValueError):
        import yaml

        with suppress(yaml.YAMLError, RecursionError):
            content = yaml.safe_load(read_config_text(words).text)
            settings = content if isinstance(content, dict) else {}
            names = [*_with_whole_names([normalise(f"--{name}") for name in settings])]
            values = zip(names, settings.values(), strict=True)
            return {name: _as_word(value) for name, value in values if value is not None}
    return {}


def read_config_text(words: Sequence[str]) -> Replaced:
    """The file of `--config` as vLLM gets it, empty without one; raises OSError or ValueError.

    It has the values of variables, and the flags of the installed vLLM.
    """
    path = words[words.index(_CONFIG) + 1] if _CONFIG in words[:-1] else ""
    replaced = replace_variables(Path(path).read_text() if path else "")
    text = _with_present_flag(replaced.text)
    return replaced._replace(text=text, is_changed=replaced.is_changed or text != replaced.text)


def _as_list(word: str) -> tuple[str, ...]:
    """The items of a list in the file; a text is the only one."""
    with suppress(ValueError):
        content = read_json(word)
        if isinstance(content, list):
            return tuple(_as_word(item) for item in content)
    return (word,)


def _as_word(value: Any) -> str:
    if value is True:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def run_vllm(words: Sequence[str], command: str = "serve") -> int:
    """Runs `vllm serve` with these words until it returns or raises SystemExit or an error of vLLM's."""
    with ExitStack() as stack:
        if command == "serve":
            words = _with_variables(words, stack)
        sys.argv = [os.path.join(os.path.dirname(sys.executable), "vllm"), command, *words]  # noqa: PTH118, PTH120
        _find_main()()
    return 0


def _with_variables(words: Sequence[str], stack: ExitStack) -> Sequence[str]:
    """The words with another file of `--config`, if something is replaced in it; the stack removes it.

    It is in memory, as values may be secrets, and has a name that vLLM takes.
    """
    try:
        replaced = read_config_text(words)
    except (OSError, ValueError):  # vLLM reports it
        return words
    for line in replaced.missing:
        logger.warning("%s: %s: vLLM gets the text as it is", _CONFIG, line)
    if not replaced.is_changed:
        return words
    place = words.index(_CONFIG) + 1
    try:
        name = stack.enter_context(own_folder()) / f"config{Path(words[place]).suffix}"
        file = stack.enter_context(os.fdopen(os.memfd_create(_CONFIG), "w"))
        file.write(replaced.text)
        file.flush()
        name.symlink_to(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    except OSError as err:
        logger.warning("%s: vLLM gets %s as it is: %s", _CONFIG, words[place], err)
        return words
    return [*words[:place], str(name), *words[place + 1 :]]


def run_plain_vllm(words: Sequence[str], command: str = "serve") -> int:
    """The same, for a start or another command whose failures are vLLM's own."""
    try:
        return run_vllm(words, command)
    except (EOFError, BrokenPipeError) as err:  # from a pipe of vLLM's; click would attribute it to the terminal
        sys.excepthook(type(err), err, err.__traceback__)
        raise SystemExit(1) from err


def run_other_command() -> int:
    """Runs the words of this process by the installed vLLM; returns the exit code.

    vLLM's function is imported, and not looked up as a program, which may be a link to this program.
    """
    if find_vllm() is None:
        remedy = "install it there (pip install vllm), or call vllm-cli by its own name"
        sys.stderr.write(f"Error: {sys.argv[0]} runs vllm-cli, whose environment has no vLLM: {remedy}.\n")
        return USAGE
    try:
        return int(_find_main()() or 0)
    except KeyboardInterrupt:
        return INTERRUPTED


def _find_main() -> Callable[[], Any]:
    """The function that vLLM's script calls; a version without the known one may have another script."""
    try:
        main: Callable[[], Any] = _MAIN.get(importlib.import_module(_MAIN.module))
        return main
    except (ModuleNotFoundError, AttributeError):
        from importlib.metadata import entry_points

        script = next(iter(entry_points(group="console_scripts", name="vllm")), None)
        if script is None:
            raise
        other: Callable[[], Any] = script.load()
        return other


def read_model_request(
    model: str | None, values: Mapping[str, str], lists: Mapping[str, Sequence[str]]
) -> ModelRequest:
    """The request of a start of vLLM.

    Args:
        model: MODEL.
        values: flags and their last values, with dashes; those of the file of `--config` too.
        lists: the values of the flags that take several.
    """

    def value(*names: str) -> str | None:
        return next((values[name] for name in names if values.get(name)), None)

    return ModelRequest(
        engine="vllm",
        model=model,
        revision=value("--revision"),
        tokenizer=value("--tokenizer"),
        tokenizer_revision=value("--tokenizer-revision"),
        has_tokenizer=values.get("--skip-tokenizer-init", "false").lower() == "false",
        hf_config_path=value("--hf-config-path"),
        generation_config=value("--generation-config") or "auto",
        download_dir=value("--download-dir"),
        hf_token=value("--hf-token"),
        load_format=(value("--load-format") or "auto").lower(),
        ignore_patterns=tuple(lists.get("--ignore-patterns", (LLAMA_ORIGINALS,))),
        adapters=tuple(_adapters(lists.get("--lora-modules", ()), values)),
        draft=_draft(_settings(values, *_SPECULATIVE)),
    )


def _settings(values: Mapping[str, str], *flags: str) -> dict[str, Any]:
    """The content of a flag that takes JSON, with the values of `--flag.key`."""
    found: dict[str, Any] = {}
    for flag in flags:
        with suppress(ValueError):
            content = read_json(values.get(flag) or "{}")
            found |= content if isinstance(content, dict) else {}
        prefix = f"{flag}."
        found |= {name.removeprefix(prefix): text for name, text in values.items() if name.startswith(prefix)}
    return found


def _draft(settings: Mapping[str, Any]) -> DraftModel | None:
    source = _text(settings.get("model"))
    if source is None or source in _NO_DRAFTS or settings.get("method") in _NO_DRAFTS:
        return None
    load = settings.get("draft_load_config")
    load_format = _text(load.get("load_format")) if isinstance(load, dict) else None
    return DraftModel(source, _text(settings.get("revision")), load_format.lower() if load_format else None)


def _adapters(texts: Iterable[str], values: Mapping[str, str]) -> Iterator[Adapter]:
    """The adapters of --lora-modules, as NAME=PATH or JSON, and those of --default-mm-loras."""
    for text in texts:
        if "=" in text and "," not in text:
            name, _, path = text.partition("=")
            yield Adapter(name, path)
            continue
        with suppress(ValueError):
            content = read_json(text)
            if isinstance(content, dict) and (source := _text(content.get("path"))) is not None:
                yield Adapter(str(content.get("name", source)), source)
    for modality, path in _settings(values, "--default-mm-loras").items():
        if (source := _text(path)) is not None:
            yield Adapter(modality, source)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
