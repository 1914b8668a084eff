"""The order of the parts of a start gives each part what it needs, with both engines."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import pytest

from startup.embedded import start as embedded
from startup.embedded.parts import EmbeddedStart
from startup.session.parts import MOMENTS, Part
from startup.vllm.launch import start as vllm
from startup.vllm.launch.parts.files import Files
from startup.vllm.launch.parts.listening import Listening
from startup.vllm.launch.parts.records import Progress
from startup.vllm.launch.vllm_start import VllmStart

_STARTS: dict[str, tuple[Sequence[type[Part[Any]]], type[Any]]] = {
    "vLLM": (vllm.PARTS, VllmStart),
    "embedded": (embedded.PARTS, EmbeddedStart),
}


@pytest.mark.parametrize("engine", _STARTS)
def test_each_value_is_given_before_it_is_needed(engine):
    parts, start = _STARTS[engine]
    set_at_once = {each.name for each in fields(start) if each.init or each.default_factory is not MISSING}
    given = set_at_once - {"engine", "download", "record"}  # are None at first
    for part in parts:
        assert part.needs <= given, f"{part.__name__} comes too early"
        given |= part.gives
    assert given <= {each.name for each in fields(start)}


@pytest.mark.parametrize("engine", _STARTS)
def test_each_part_has_a_moment_and_says_what_it_does(engine):
    for part in _STARTS[engine][0]:
        assert set(MOMENTS) & set(vars(part)), part.__name__
        assert part.__doc__ and part.__doc__ != Part.__doc__, part.__name__


def test_processes_are_forked_before_a_start_of_vllm_has_threads():
    """The responder and the helper that downloads are forks of this process. Progress has a thread."""
    assert vllm.PARTS[:3] == (Listening, Files, Progress)
