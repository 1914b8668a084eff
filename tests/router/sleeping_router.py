"""Routers with two models of the fake vLLM with sleep mode."""

from pathlib import Path
from typing import Final

from tests.router.router_process import RouterProcess
from tests.startup.vllm.fake_start import environment

FLAGS: Final = ["--enforce-eager", "--enable-sleep-mode", "--prefetch", "off"]
AWAKE: Final = "Once was read by worker 0"
_SMALL: Final = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""A KV cache of 1 GiB. Without a size, nearly all of the machine's memory would have to be free."""
_WORDS: Final = ("--max-running", "1", "--max-wait", "1", "--standby", "off")


class SleepingRouter(RouterProcess):
    """A router of the models a and b. Only one of them can be awake."""

    def __init__(self, folder: Path, *words: str) -> None:
        entry = {"model": "fake", "engine": "vllm", "args": FLAGS}
        changed = environment(folder, **_SMALL)
        super().__init__(folder, dict.fromkeys("ab", entry), *_WORDS, *words, environment=changed)

    def says(self, model: str) -> str:
        answer = self.post(model)
        assert answer.status == 200, (answer, self.log)
        text: str = answer.json["choices"][0]["text"]
        return text
