"""A configured start method is used; the default is to fork from the preloaded forkserver."""

from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, variant

pytestmark = pytest.mark.thorough

_FOR_GPU = {"_version": '__version__ = "0.32.0"\n'}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("wanted", "found", "files"),
    [
        ("forkserver", "forkserver", {}),
        ("spawn", "spawn", {}),
        ("fork", "spawn", {}),  # vLLM's CPU platform requires it
        (None, "forkserver", _FOR_GPU),
        ("fork", "fork", _FOR_GPU),
    ],
    ids=["forkserver", "spawn", "fork-on-cpu", "default-on-gpu", "fork-on-gpu"],
)
def test_children_are_started_with_the_configured_method(
    wanted: str | None, found: str, files: dict[str, str], folder: Path
) -> None:
    """Modules of our packages' names that are found first on the path are not imported by any of them."""
    fake = variant(folder, **files)
    for name in ("server", "startup", "envs"):
        (fake / f"{name}.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\nraise SystemExit\n")
    env = environment(folder, fake, VLLM_WORKER_MULTIPROC_METHOD=wanted)
    with FakeStart(folder, env=env) as start:
        state = start.wait_until_ready().state()
        children = [state["engine"], *state["workers"]]
        assert [start.kind_of(child["pid"]) for child in children] == [found] * 2
        assert len(start.forkservers()) == (found == "forkserver")
        assert start.complete("A text") == "A text was read by worker 0"
        assert start.end() == 0
        start.wait_until_tree_is_gone()
        assert start.lines_with("WARNING") == []
        assert not (folder / "imported").exists()


def test_a_variable_that_only_a_new_program_can_apply_starts_one(folder: Path) -> None:
    changes = "\n_prepare = prepare_environment\n\n\ndef prepare_environment():\n    _prepare()\n"
    platforms = (Path(__file__).with_name("fake") / "vllm" / "platforms" / "cpu.py").read_text()
    fake = variant(folder, platforms__cpu=f"{platforms}{changes}    os.environ['PYTHONHASHSEED'] = '7'\n")
    with FakeStart(folder, env=environment(folder, fake)) as start:
        state = start.wait_until_ready().state()
        assert start.kind_of(state["engine"]["pid"]) == "spawn"
        assert (
            len(start.lines_with("EngineCore is started as a new program instead of forked: PYTHONHASHSEED is '7'"))
            == 1
        )
        assert len(start.lines_with("WARNING")) == 1
