"""Executes a template process again with variables that libraries read when they are loaded."""

import json
import os
import sys
from collections.abc import Mapping

from envs import foreign
from envs.registry import env


def given_environment(wanted: Mapping[str, str]) -> dict[str, str]:
    """Returns once this process was executed with these variables; the result is without them.

    The variables stay set; starts are compared with what the user gave to the standby.
    """
    marker = env.VCLI_GIVEN_VARIABLES.name
    if (before := env.VCLI_GIVEN_VARIABLES.raw) is not None:
        os.environ.pop(marker)
        given = {**foreign.snapshot(), **json.loads(before)}
        return {name: value for name, value in given.items() if value is not None}
    environment = foreign.snapshot()
    changed = {name: environment.get(name) for name, value in wanted.items() if environment.get(name) != value}
    if changed:
        os.execve(sys.executable, sys.orig_argv, {**environment, **wanted, marker: json.dumps(changed)})
    return environment
