"""Reads model, address and a few flags from the command line of `vllm serve`, which vLLM parses again."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from server.config import ModelFiles
from startup.config import ModelConfig
from startup.model.location import locate
from startup.serve_words import is_for_information, split

_SWITCHES_OFF_LISTENING: Final = (
    "--headless",
    "--grpc",
    "--data-parallel-multi-port-external-lb",
    "-dpm",
    "--ssl-keyfile",
    "--ssl-certfile",
)
"""With these flags the launcher has no port, or the port uses a protocol that the responder does not have."""

_DEFAULT_PORT: Final = 8000


@dataclass(frozen=True)
class CommandLine:
    """The words of the command line, and what can be read from them without vLLM's parser."""

    words: tuple[str, ...]
    values: Mapping[str, str]
    """Flags, with dashes instead of underscores, and their last values; a switch has an empty value."""
    model: str | None

    @classmethod
    def of(cls, words: Sequence[str]) -> "CommandLine":
        """Reads the words and the file of `--config`; the words take precedence."""
        flags = (given for given in split(words, lambda _: "?") if given.flag)
        values = {given.name: given.values[0] if given.values else "" for given in flags}
        settings = _config_file(values.get("--config"))
        model = settings.get("--model-tag") or settings.get("--model") or values.get("--model")
        if words and not words[0].startswith("-"):
            model = words[0]
        return cls(tuple(words), {**settings, **values}, model)

    def locate_model(self) -> ModelFiles | None:
        """The model's files; None if they are not on disk."""
        return locate(ModelConfig(model=self.model)).files if self.model else None

    def has(self, *names: str) -> bool:
        """Whether one of the flags is given."""
        return any(name in self.values and self.values[name].lower() != "false" for name in names)

    @property
    def is_for_help(self) -> bool:
        """Whether vLLM will print help or its version and exit."""
        return is_for_information(self.words)

    @property
    def listens(self) -> bool:
        """Whether this process or its API servers will listen on one port, known before vLLM starts."""
        return not self.has(*_SWITCHES_OFF_LISTENING) and self.port not in (None, 0)

    @property
    def host(self) -> str | None:
        """The value of `--host`; None if it is missing or empty."""
        return self.values.get("--host") or None

    @property
    def port(self) -> int | None:
        """The value of `--port` or vLLM's default; None if it is not a number, which vLLM will reject."""
        with suppress(ValueError):
            return int(self.values.get("--port", _DEFAULT_PORT))
        return None

    @property
    def uds(self) -> str | None:
        """Path of the Unix socket to listen on, if `--uds` is given."""
        return self.values.get("--uds") or None

    @property
    def served_name(self) -> str:
        """The model's name in the history of starts."""
        return self.values.get("--served-model-name") or self.model or "vLLM's default model"


def _config_file(path: str | None) -> dict[str, str]:
    """The settings of vLLM's YAML file as flags; empty for an unreadable file, which vLLM will reject."""
    if not path:
        return {}
    with suppress(OSError, ImportError, ValueError):
        import yaml

        with suppress(yaml.YAMLError):
            content = yaml.safe_load(Path(path).read_text())
            settings = content if isinstance(content, dict) else {}
            return {_as_flag(name): _as_word(value) for name, value in settings.items() if value is not None}
    return {}


def _as_flag(name: object) -> str:
    return f"--{str(name).replace('_', '-')}"


def _as_word(value: Any) -> str:
    if value is True:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
