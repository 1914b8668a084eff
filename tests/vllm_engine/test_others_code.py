"""Code of others that changes modules of vLLM has the same effect as with `vllm serve`."""

from pathlib import Path

import pytest

from tests.vllm_engine.conftest import SMALL, StartVllm
from tests.vllm_engine.others_code import INSPECTION, MEMBERS, NAMES, imported_before
from tests.vllm_engine.vllm_server import VllmServer

pytestmark = pytest.mark.versions

_PROMPTS = ("The capital of France is", "1, 1, 2, 3, 5, 8,")


def _answers(server: VllmServer) -> list[str]:
    wanted = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return [server.post("/v1/completions", prompt=each, **wanted)["choices"][0]["text"] for each in _PROMPTS]


@pytest.fixture(scope="module")
def unchanged(start_vllm: StartVllm) -> list[str]:
    with start_vllm("ours") as server:
        return _answers(server.wait_ready())


def _run(launcher: str, name: str, folder: Path, model: Path) -> tuple[list[str], dict[str, set[str]]]:
    """The answers, and which modules each process had imported when the code ran."""
    member = MEMBERS[name]
    variables = member.write(folder / launcher)
    arguments = (*SMALL, *member.arguments)
    served = member.model(model, folder)
    with VllmServer(launcher, served, *arguments, folder=folder, environment=variables) as server:
        answers = _answers(server.wait_ready())
    return answers, imported_before(Path(variables[NAMES]))


_CASES = [
    pytest.param(launcher, name, id=f"{launcher}: {name}", marks=[pytest.mark.ci_vllm] * (name == "general plugin"))
    for name, member in MEMBERS.items()
    for launcher in (("ours",) if member.arguments else ("ours", "warm"))
]
"""A standby serves no start with a flag that names code (`tests/startup/vllm/test_warm_start_of_vllm.py`)."""


@pytest.mark.parametrize(("launcher", "name"), _CASES)
def test_the_answers_are_those_of_plain_vllm(launcher, name, unchanged, small_model, tmp_path, plain_answers):
    expected, imported_by_plain = plain_answers(name)
    assert (expected != unchanged) == MEMBERS[name].has_effect
    answers, imported = _run(launcher, name, tmp_path, small_model)
    assert answers == expected
    assert imported.keys() == imported_by_plain.keys()
    for process, modules in imported.items():
        if process == INSPECTION:
            continue
        assert sorted(modules - imported_by_plain[process]) == [], f"imported too early in {process}"


@pytest.fixture(scope="module")
def plain_answers(small_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Returns a function with the answers of plain vLLM, each member of which is started once."""
    known: dict[str, tuple[list[str], dict[str, set[str]]]] = {}

    def answers(name: str) -> tuple[list[str], dict[str, set[str]]]:
        if name not in known:
            known[name] = _run("plain", name, tmp_path_factory.mktemp("plain"), small_model)
        return known[name]

    return answers
