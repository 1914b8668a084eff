"""Reads all facts from the sources of a vLLM, which takes a tenth of a second; imports nothing of vLLM."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from startup.hooks.sources import Sources, packages_beside
from startup.vllm.facts.definitions import Definitions
from startup.vllm.facts.flags import read_flags
from startup.vllm.facts.plugins import read_plugins
from startup.vllm.facts.registries import read_quantization, read_registries
from startup.vllm.facts.rules import read_rules
from startup.vllm.facts.vllm_facts import VariableFact, VllmFacts

_MODULE: Final = "vllm.envs"
_TABLE: Final = re.compile(r"^environment_variables\b[^\n]*= *\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_ENTRY: Final = re.compile(r'^ {4}"(\w+)":', re.MULTILINE)
_NUMBER: Final = re.compile(r'\b(int|float)\(\s*os\.(?:get\w+|environ\.\w+)\(\s*"(\w+)"(?:,[^()]*)?\)\s*\)')
_CHOICES: Final = re.compile(r"env_with_choices\([^\[]*\[([^\]]*)\]")
_PORT_READER: Final = "get_vllm_port"
_SETTERS: Final = ("vllm.platforms.cpu", "vllm.config.vllm", "vllm.config.parallel", "vllm.transformers_utils.config")
"""Modules that set some of the variables themselves, before they are all read."""
_SETS: Final = re.compile(r'\bos\.environ\["(\w+)"\] *=')


def read_sources(sources: Sources, folders: list[str]) -> VllmFacts:
    """Reads the sources of vLLM, and the lists of the packages installed in the folders."""
    definitions = Definitions(sources)
    flags = read_flags(definitions)
    return VllmFacts(
        flags=flags.flags,
        has_all_flags=flags.is_complete and len(flags.flags) > 0,
        variables=read_variables(definitions),
        registries=read_registries(definitions),
        rules=read_rules(definitions),
        quantization=read_quantization(definitions),
        installed_plugins=read_plugins(folders),
    )


def read_facts_in(folder: Path) -> VllmFacts:
    """The facts about a vLLM in a folder such as the site-packages of another environment."""
    return read_sources(Sources(packages_beside(folder)), [str(folder)])


def read_variables(definitions: Definitions) -> tuple[VariableFact, ...]:
    """All variables of the table; those that vLLM sets itself may have any value."""
    module = definitions.module(_MODULE)
    table = _TABLE.search(module.text) if module is not None else None
    setters = filter(None, map(definitions.module, _SETTERS))
    own = {name for setter in setters for name in _SETS.findall(setter.text)}
    facts = _facts(table[1]) if table is not None else ()
    return tuple(VariableFact(fact.name) if fact.name in own else fact for fact in facts)


def _facts(table: str) -> Iterator[VariableFact]:
    entries = list(_ENTRY.finditer(table))
    ends = [*(entry.start() for entry in entries[1:]), len(table)]
    for entry, end in zip(entries, ends, strict=True):
        yield _fact(entry[1], table[entry.end() : end])


def _fact(name: str, getter: str) -> VariableFact:
    number = _NUMBER.search(getter)
    if number is not None and number[2] == name:
        return VariableFact(name, "int" if number[1] == "int" else "float")
    if getter.strip().startswith(f"{_PORT_READER},"):
        return VariableFact(name, "int")
    if (found := _CHOICES.search(getter)) is not None and getter.lstrip().startswith("env_with_choices"):
        choices = tuple(re.findall(r'"([^"]*)"', found[1]))
        is_case_free = "case_sensitive=False" in getter
        return VariableFact(name, "choice", tuple(map(str.lower, choices)) if is_case_free else choices, is_case_free)
    return VariableFact(name)
