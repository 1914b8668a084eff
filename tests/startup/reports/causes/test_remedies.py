"""Remedies name flags that the engine concerned has."""

import re

import pytest

from envs.replacements import REPLACEMENTS
from startup.reports.causes.table import BY_NAME
from startup.words.serve_command import parse_start

_FLAG = re.compile(r"--[a-z][\w-]+")
_OF_DOCKER = ("--device",)


@pytest.mark.parametrize("cause", BY_NAME.values(), ids=lambda cause: cause.name)
def test_no_remedy_names_a_flag_that_vllm_has_given_up(cause):
    named = set(_FLAG.findall(cause.advice)).difference(_OF_DOCKER)
    assert named.intersection(REPLACEMENTS) == set()


def test_what_the_embedded_engine_advises_without_memory_is_accepted_by_it():
    """The engine's own message and the digest's advice: each flag with a value becomes a start."""
    for flag in _FLAG.findall(BY_NAME["host-out-of-memory"].advice):
        parse_start(["m", "--engine", "embedded", flag, "4096"], is_quiet=True)
