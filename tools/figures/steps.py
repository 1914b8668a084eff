"""The benchmarks of `make figures`. Each step is one command that writes one JSON file."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.figures.running import Step

FLEET: Final = "stand-in, fleet"
"""The step whose figures docs/fleet.md shows."""
_VARIABLES: Final = "HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1"
_EAGER: Final = " --enforce-eager"
_SPIN: Final = f"{sys.executable} -c 'while True: pass' & spin=$!; \"$@\"; code=$?; kill $spin; exit $code"
"""A shell script. It runs its arguments as a command while another process keeps one core busy."""
_LOOP: Final = 'while :; do "$@"; done'
"""A shell script. It runs its arguments as a command again and again, as a service manager does."""
_EMPTY_CACHE: Final = 'export VLLM_CACHE_ROOT=$(mktemp -d -p "$0"); exec "$@"'
"""A shell script. It runs its arguments as a command, with an empty cache folder inside the folder `$0`."""


class Steps:
    """All steps. Their commands name files in the project, and in a folder for caches and models."""

    def __init__(self, root: Path, work: Path) -> None:
        """
        Args:
            root: folder of the project.
            work: folder of caches and of the large model.
        """
        self._root, self.work = root, work
        self.tool: Final = ("env", f"PYTHONPATH={root}", sys.executable, "-m")
        """The words of a command before the name of a module."""
        self._own = shlex.join((*self.tool, "vllm_cli"))
        self._model = f"{root}/.peers/model"
        self.large_model: Final = work / "1.5b"

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps in the order of their runs. Figures that matter to most users come first."""
        yield from self._starts()
        yield self._plugin()
        yield from self._embedded_starts()
        yield self._killed_engine()
        yield self._tokens()
        yield from self._renders()
        yield from self._large_model()
        yield from self._stand_in_starts()
        yield from self._further_tokens()

    def _starts(self) -> Iterator[Step]:
        compiled = (self._launcher("compiled-ours"), self._vllm("compiled-plain"))
        eager = (self._launcher("eager-ours") + _EAGER, self._vllm("eager-plain") + _EAGER)
        yield self._startup("start, compiled", 3, *compiled, most_s=900)
        yield self._startup("start, eager", 5, *eager, most_s=500)
        yield self._startup("warm start, compiled", 3, *compiled, "--state", "standby", most_s=900)
        yield self._startup("warm start, eager", 5, *eager, "--state", "standby", most_s=500)
        yield self._first("first start, eager", 3, self._launcher() + _EAGER, self._vllm() + _EAGER, most_s=400)
        location = f"--compile-cache {self.work}/location"
        step = self._first(
            "first start, compiled, shared", 2, f"{self._launcher()} {location}", self._vllm(), most_s=900
        )
        yield self._after_use(f"{self._launcher('location-ours')} {location}", step)

    def _plugin(self) -> Step:
        """A step with a plugin that replaces names in vLLM. It fails if a model is built without them."""
        words = (*self.tool, "tools.gpu_stub.starts", "--cpu", "--json", "{result}", "--rounds", "5")
        return Step("start, eager, plugin", (*words, "--case", "eager, plugin"), 900)

    def _killed_engine(self) -> Step:
        """A step in which both sides start the server again when its engine is killed."""
        ours = f"{self._launcher('eager-ours')}{_EAGER} --restart on-failure:100"
        plain = shlex.join(["sh", "-c", _LOOP, "sh", *shlex.split(self._vllm("eager-plain") + _EAGER)])
        words = (*self.tool, "tools.figures.killed_engine", "--json", "{result}", "--rounds", "5")
        return Step("killed engine", (*words, "--cmd", ours, "--cmd", plain), 1500)

    def _embedded_starts(self) -> Iterator[Step]:
        sides = (self._embedded("embedded"), self._transformers(self._model))
        asks = ("--vs-request-model", self._model)
        yield self._startup("start, embedded", 7, *sides, *asks, most_s=200)
        yield self._startup("warm start, embedded", 7, *sides, *asks, "--state", "standby", most_s=200)

    def _tokens(self) -> Step:
        sides = (self._embedded("embedded"), self._vllm("compiled-plain"), self._vllm("eager-plain") + _EAGER)
        return self._served("tokens, embedded", 3, sides, most_s=1200)

    def _further_tokens(self) -> Iterator[Step]:
        plain = self._vllm("compiled-plain")
        sides = (self._launcher("compiled-ours"), plain)
        yield self._served("tokens, vLLM engine", 10, sides, "--concurrency", "32", most_s=1800)
        sides = (self._embedded("embedded"), plain)
        step = self._served("tokens beside a busy process", 3, sides, "--max-tokens", "32", most_s=900)
        yield Step(step.name, ("sh", "-c", _SPIN, "sh", *step.words), step.most_s)

    def _renders(self) -> Iterator[Step]:
        ours, plain = self._launcher("eager-ours") + _EAGER, self._vllm("eager-plain") + _EAGER
        words = (*self.tool, "tools.figures.renders", "--json", "{result}", "--rounds", "3")
        ordinary = f"env VCLI_LEAVE_OUT='real-time probes' {ours}"
        for name, sides in (
            ("health beside renders", (ours, self._embedded("embedded"), plain)),
            ("health beside renders, ordinary priority", (ordinary, plain)),
        ):
            commands = (word for side in sides for word in ("--cmd", side))
            yield Step(name, (*words, *commands), 500)

    def _large_model(self) -> Iterator[Step]:
        model = str(self.large_model)
        sides = (self._launcher("large-ours", model=model) + _EAGER, self._vllm("large-plain", model=model) + _EAGER)
        yield self._startup("start, eager, 1.5 billion parameters", 3, *sides, most_s=600)
        sides = (self._embedded("large-embedded", model=model), self._transformers(model))
        asks = ("--vs-request-model", model)
        yield self._startup("start, embedded, 1.5 billion parameters", 3, *sides, *asks, most_s=300)

    def _stand_in_starts(self) -> Iterator[Step]:
        """Yields steps that measure starts on a stand-in for a GPU. The stand-in runs no kernel."""
        words = (*self.tool, "tools.gpu_stub.starts", "--json", "{result}", "--rounds", "3")
        for kind in ("compiled", "eager"):
            yield Step(f"stand-in, start, {kind}", (*words, "--case", f"{kind}, later"), 1200)
        for case in ("first", "--compile-cache", "after plain", "volume"):
            yield Step(f"stand-in, compiled, {case}", (*words, "--case", f"compiled, {case}"), 1800)
        yield Step("stand-in, eager, first", (*words, "--case", "eager, first"), 1200)
        yield Step(FLEET, (*self.tool, "tools.gpu_stub.starts", "--json", "{result}", "--fleet"), 1500)

    def _startup(self, name: str, rounds: int, ours: str, peer: str, *words: str, most_s: float) -> Step:
        """A step that measures starts with caches that earlier starts have filled."""
        return self._after_use(ours, self._first(name, rounds, ours, peer, *words, most_s=most_s, is_empty=False))

    def _first(
        self, name: str, rounds: int, ours: str, peer: str, *words: str, most_s: float, is_empty: bool = True
    ) -> Step:
        """A step that measures starts. `is_empty`: whether each start has an empty folder of caches."""
        if is_empty:
            ours, peer = self._with_empty_cache(ours), self._with_empty_cache(peer)
        bench = (*shlex.split(self._own), "bench", "startup", "--json", "{result}", "--rounds", str(rounds))
        return Step(name, (*bench, "--cmd", ours, "--vs", peer, *words), most_s)

    def _after_use(self, command: str, step: Step) -> Step:
        """Prepends a run to the step: one of our servers serves for a while and writes its caches."""
        use = shlex.join(
            (*self._client(), "--json", "/dev/null", "--rounds", "1", "--concurrency", "1", "--cmd", command)
        )
        return Step(step.name, ("sh", "-c", f"{use} && {shlex.join(step.words)}"), step.most_s)

    def _served(self, name: str, rounds: int, sides: tuple[str, ...], *words: str, most_s: float) -> Step:
        commands = (word for side in sides for word in ("--cmd", side))
        client = (*self._client(), "--json", "{result}", "--rounds", str(rounds))
        return Step(name, (*client, *commands, *words), most_s)

    def _client(self) -> tuple[str, ...]:
        """The words of the tool that sends requests with vLLM's client."""
        vllm = f"{self._root}/.peers/vllm/bin/vllm"
        return (*self.tool, "tools.figures.tokens", "--vllm", vllm, "--model", self._model)

    def _launcher(self, cache: str = "", *, model: str | None = None) -> str:
        """The command of our launcher, in the Python environment of vLLM."""
        python = f"PYTHONPATH={self._root} {self._root}/.peers/vllm/bin/python -m vllm_cli"
        return f"env {_VARIABLES}{self._cache(cache)} {python} serve {model or self._model} --engine vllm"

    def _vllm(self, cache: str = "", *, model: str | None = None) -> str:
        """The command `vllm serve` as a user types it, with vLLM's defaults."""
        program = f"{self._root}/.peers/vllm/bin/vllm"
        return f"env -u PYTHONPATH {_VARIABLES}{self._cache(cache)} {program} serve {model or self._model}"

    def _embedded(self, cache: str, *, model: str | None = None) -> str:
        own = f"PYTHONPATH={self._root} {sys.executable} -m vllm_cli"
        return f"env HF_HUB_OFFLINE=1{self._cache(cache)} {own} serve {model or self._model} --engine embedded"

    def _transformers(self, model: str) -> str:
        return f"env -u PYTHONPATH HF_HUB_OFFLINE=1 {self._root}/.peers/transformers/bin/transformers serve {model}"

    def _cache(self, name: str) -> str:
        return f" VLLM_CACHE_ROOT={self.work}/{name}" if name else ""

    def _with_empty_cache(self, command: str) -> str:
        return shlex.join(["sh", "-c", _EMPTY_CACHE, str(self.work), *shlex.split(command)])
