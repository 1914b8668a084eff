"""The start that is checked: the installed vLLM, what it accepts, and what the command line asks for."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from startup.model.file_plan import FilePlan, plan_files
from startup.model.request import ModelRequest
from startup.vllm.facts.vllm_facts import VllmFacts
from startup.vllm.installed import InstalledVllm
from startup.vllm.preflight.arguments import ServeArguments
from startup.vllm.preflight.flag_values import FlagValueError, parse_value


@dataclass(frozen=True)
class CheckedStart:
    """One start; its values are those that vLLM would use, as far as they can be known."""

    vllm: InstalledVllm
    facts: VllmFacts
    arguments: ServeArguments

    def value(self, name: str) -> Any:
        """The converted value of a flag; None if it is not given, or not valid."""
        found = self.arguments.last(name)
        if found is None or not found.values:
            return None
        try:
            return parse_value(found.fact, found.values[-1])
        except FlagValueError:
            return None

    def number(self, name: str, default: int) -> int:
        """A flag's whole number."""
        value = self.value(name)
        return value if isinstance(value, int) else default

    def has(self, *names: str) -> bool:
        """Whether one of the flags is given; a switch must be on."""
        return any(map(self.arguments.has, names))

    @cached_property
    def plan(self) -> FilePlan | None:
        """Where model and tokenizer are; None if no model is named."""
        if self.arguments.model is None:
            return None
        return plan_files(
            ModelRequest(
                engine="vllm",
                model=self.arguments.model,
                tokenizer=self.value("--tokenizer") or None,
                revision=self.value("--revision") or None,
                tokenizer_revision=self.value("--tokenizer-revision") or None,
                has_tokenizer=not self.has("--skip-tokenizer-init"),
                download_dir=self.value("--download-dir") or None,
                hf_token=self.value("--hf-token") or None,
                load_format=self.load_format,
            )
        )

    @property
    def load_format(self) -> str:
        """In lower case, as vLLM compares it."""
        return str(self.value("--load-format") or "auto").lower()
