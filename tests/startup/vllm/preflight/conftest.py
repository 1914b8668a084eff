"""Starts of a small vLLM, whose sources are those of `facts/small_vllm.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from startup.vllm.command_line import CommandLine
from startup.vllm.facts.installed_facts import read_facts_in
from startup.vllm.facts.vllm_facts import Plugin, VllmFacts
from startup.vllm.installed import InstalledVllm
from startup.vllm.preflight.arguments import CheckedStart, read_arguments
from tests.startup.vllm.facts.small_vllm import write_small_vllm

CheckStart: TypeAlias = Callable[..., CheckedStart]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package vllm."""
    return write_small_vllm(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def facts(package: Path) -> VllmFacts:
    return read_facts_in(package.parent)


@pytest.fixture
def start(package: Path, facts: VllmFacts) -> CheckStart:
    """A start of the small vLLM with some words, and with a plugin if there is one."""

    def create(*words: str, has_plugin: bool = False, version: str = "0.32.0+cpu") -> CheckedStart:
        plugins = (Plugin("vllm.general_plugins", "own"),) if has_plugin else ()
        known = facts._replace(installed_plugins=plugins)
        plan = CommandLine.of(words).plan
        return CheckedStart(InstalledVllm(version, package), known, read_arguments(words, known), plan)

    return create
