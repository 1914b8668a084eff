"""The order of the parts of a start of vLLM gives each part what it needs."""

from dataclasses import fields

from startup.session.parts import MOMENTS, Part
from startup.vllm.launch.parts.files import Files
from startup.vllm.launch.parts.listening import Listening
from startup.vllm.launch.parts.records import Progress
from startup.vllm.launch.start import PARTS
from startup.vllm.launch.vllm_start import VllmStart

_INITIAL = {"line"}


def test_each_value_is_given_before_it_is_needed():
    given = set(_INITIAL)
    for part in PARTS:
        assert part.needs <= given, f"{part.__name__} comes too early"
        given |= part.gives
    names = {field.name for field in fields(VllmStart)}
    assert given <= names


def test_each_part_has_a_moment_and_says_what_it_does():
    for part in PARTS:
        assert set(MOMENTS) & set(vars(part)), part.__name__
        assert part.__doc__ and part.__doc__ != Part.__doc__, part.__name__


def test_processes_are_forked_before_the_start_has_threads():
    """The responder and the helper that downloads are forks of this process. Progress has a thread."""
    assert PARTS[:3] == (Listening, Files, Progress)
