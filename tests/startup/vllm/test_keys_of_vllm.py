"""Keys and tokens on the command line reach vLLM unchanged, and no process shows them."""

from contextlib import suppress

import psutil
import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, variant, without_forks

pytestmark = pytest.mark.thorough

_SECRETS = ("sesame-one", "sesame-two", "sesame-three")
_WORDS = ("model", "--api-key", *_SECRETS[:2], "--hf-token=sesame-three", "--enforce-eager")


def _shown(start: FakeStart) -> str:
    """The command lines of the running processes."""
    shown = []
    for process in (start.launcher, *start.record_tree()):
        with suppress(psutil.NoSuchProcess):
            shown.append("\0".join(process.cmdline()))
    assert len(shown) >= 3
    return "\n".join(shown)


@pytest.mark.parametrize("method", ["forkserver", "fork", "spawn"])
def test_secrets_reach_vllm_and_are_masked_elsewhere(method, folder):
    fake = variant(folder, _version='__version__ = "0.32.0"\n')
    env = environment(folder, fake, VLLM_WORKER_MULTIPROC_METHOD=method)
    gate = folder / "gate"
    with FakeStart(folder, *_WORDS, "--gate", str(gate), env=env) as start:
        start.wait_for_line("EngineCore prints a line")
        assert start.responders()
        assert "sesame" not in _shown(start)
        gate.touch()
        server = start.wait_until_ready().state()["server"]
        assert "sesame" not in _shown(start)
        assert "--api-key\0**********\0**********\0--hf-token=************\0" in _shown(start)
        drained = (_WORDS[0], "--shutdown-timeout", "30", *_WORDS[1:])
        assert server["argv"][2 : 2 + len(drained)] == list(drained)
        notices = start.lines_with("Notice:")
        assert [notice.partition(" on the command line")[0] for notice in notices] == [
            "Notice: --api-key",
            "Notice: --hf-token",
        ]
        assert [notice.rpartition(" ")[2] for notice in notices] == ["VLLM_API_KEY.", "HF_TOKEN."]
        assert "sesame" not in start.text


def test_a_second_attempt_has_the_unmasked_words(folder):
    """The program executes itself again with the original words, not with the masked ones."""
    with FakeStart(folder, *_WORDS, env=environment(folder, without_forks(folder, "0.99.0+cpu"))) as start:
        server = start.wait_until_ready().state()["server"]
        assert start.lines_with("starts again without preloading")
        assert server["argv"][2 : 2 + len(_WORDS)] == list(_WORDS)
        assert "sesame" not in _shown(start)


@pytest.mark.parametrize("spelling", ["--api_key", "--api-k"])
def test_a_secret_flag_is_masked_in_every_spelling_of_vllm(spelling, folder):
    with FakeStart(folder, spelling, "sesame-one", "--headless") as start:
        start.wait_for_line("headless engine")
        assert "sesame" not in _shown(start)
        start.record_tree()
