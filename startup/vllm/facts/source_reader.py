"""Reads all facts from the sources of a vLLM, which takes a tenth of a second; imports nothing of vLLM."""

from pathlib import Path

from startup.hooks.sources import Sources, packages_beside
from startup.vllm.facts.definitions import Definitions
from startup.vllm.facts.flags import read_flags
from startup.vllm.facts.plugins import read_plugins
from startup.vllm.facts.registries import read_quantization, read_registries
from startup.vllm.facts.rules import read_rules
from startup.vllm.facts.variables import read_variables
from startup.vllm.facts.vllm_facts import VllmFacts


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
