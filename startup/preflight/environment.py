"""Checks environment variables: wrong values, misspelt names, variables that the embedded engine ignores."""

import os
from collections.abc import Iterator
from typing import Final

from envs.registry import unknown_variables, validate_all, variables
from server.wording import list_some
from startup.preflight.report import Finding, error, info, warning

_CHECK: Final = "environment"
_FOREIGN_PREFIX: Final = "VLLM_"


def check_environment() -> Iterator[Finding]:
    """Reports all faulty variables at once."""
    for err in validate_all():
        yield error(_CHECK, str(err))
    for unknown in unknown_variables():
        yield warning(_CHECK, f"{unknown}: unset it or correct its name")
    if ignored := _ignored_names():
        yield info(_CHECK, f"the embedded engine does not read {list_some(ignored)}: set for vLLM, no effect here")


def _ignored_names() -> list[str]:
    declared = {variable.name for variable in variables()}
    return sorted(name for name in os.environ if name.startswith(_FOREIGN_PREFIX) and name not in declared)
