"""Remedies name no flags that vLLM has given up."""

import re

import pytest

from envs.replacements import REPLACEMENTS
from startup.reports.causes.table import BY_NAME

_FLAG = re.compile(r"--[a-z][\w-]+")
_OF_DOCKER = ("--device",)


@pytest.mark.parametrize("cause", BY_NAME.values(), ids=lambda cause: cause.name)
def test_no_remedy_names_a_flag_that_vllm_has_given_up(cause):
    named = set(_FLAG.findall(cause.advice)).difference(_OF_DOCKER)
    assert named.intersection(REPLACEMENTS) == set()
