"""Random swaps over five tiny models of one router, with kills, vanishing clients, file edits and unloads.

    .venv/bin/python -m tools.random_swaps --swaps 1000 --json build/random-swaps.json
    make test-swaps ARGS="--swaps 200"

Three of the five models have room (`--max-running 3`). Meanwhile
  clients       stream or do not; each answer must be the text of the model that was asked for
  vanishing     some clients disconnect at a random moment: queued, starting, streaming
  kills         SIGKILL to a random model's process
  file edits    a key of a model changes; the last model is removed and comes back; the file has a fault
  unloads       POST /v1/models/NAME/unload and /load

A request is lost if it has no complete answer although nothing has happened to its model: no kill since one
minute before it (a killed model backs off), no removal. The run fails on a lost request, a wrong text, a
process, socket or file that is left, and on growth: memory (RssAnon) and open files of the router at the end,
all models stopped, compared with those after the first fifth of the swaps. PSS would change with the number
of processes that share pages with the router.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.llamas import save_tiny_llama
from tests.ports import free_port

_NAMES = ("m0", "m1", "m2", "m3", "m4")
_REMOVED = _NAMES[-1]
_NUM_CLIENTS = 6
_AFTER_KILL_S = 65.0
"""The longest back-off after a failure, and some time to notice it."""
_MAX_GROWTH_BYTES = 4 << 20
_MORE_FILES = 2
"""Connections of the last requests may still be open."""
_END_S = 60.0
_BETWEEN_SAMPLES_S = 30.0


@dataclass
class _Tally:
    """What has happened so far; the result of the run."""

    num_swaps: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    """By kind: complete, vanished, refused after a kill, cut by a kill, removed."""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    num_kills: int = 0
    num_edits: int = 0
    num_unloads: int = 0
    memory_begin_bytes: int = 0
    memory_end_bytes: int = 0
    files_begin: int = 0
    files_end: int = 0
    series: list[tuple[int, int]] = field(default_factory=list)
    """The router's own memory in bytes (RssAnon) after so many swaps, each half minute."""
    left: list[str] = field(default_factory=list)
    """Processes and files after the end, or after all models were unloaded."""
    exit_code: int | None = None
    took_s: float = 0.0

    def count(self, kind: str) -> None:
        """Notes one more answer of this kind."""
        self.answers[kind] = self.answers.get(kind, 0) + 1

    @property
    def is_fine(self) -> bool:
        """Nothing is lost, wrong, left or grown."""
        growth, more_files = self.memory_end_bytes - self.memory_begin_bytes, self.files_end - self.files_begin
        is_flat = growth <= _MAX_GROWTH_BYTES and more_files <= _MORE_FILES
        return not (self.lost or self.wrong or self.left) and is_flat and self.exit_code == 0


class _Run:
    def __init__(self, folder: Path, num_swaps: int, seed: int, words: list[str], log: Path) -> None:
        self._folder = folder
        self._num_swaps = num_swaps
        self._random = random.Random(seed)
        self._words = words
        self._log = log
        self._file = folder / "models.yaml"
        self._port = free_port()
        self._url = f"http://127.0.0.1:{self._port}"
        self._expected: dict[str, str] = {}
        self._killed_s: dict[str, float] = {}
        self._removed_s = -1e9
        """When the removable model was last absent from the file."""
        self._variables: dict[str, int] = dict.fromkeys(_NAMES, 0)
        self._num_starts: dict[str, int] = {}
        self._noted_s = 0.0
        self._is_ending = False
        self.tally = _Tally()

    async def run(self) -> None:
        begin_s = time.monotonic()
        self._models = {name: _save_model(self._folder / name, number) for number, name in enumerate(_NAMES)}
        self._write_file(_NAMES)
        (self._folder / "tmp").mkdir()
        self._environment = os.environ | {"TMPDIR": str(self._folder / "tmp"), "VCLI_STANDBY": "auto"}
        command = [sys.executable, "-m", "vllm_cli", "serve", "--models", str(self._file), "--port", str(self._port)]
        with self._log.open("wb") as log:
            router = await asyncio.create_subprocess_exec(
                *command, "--max-running", "3", "--max-wait", "3", *self._words, env=self._environment, stderr=log
            )
        self._router = psutil.Process(router.pid)
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as self._session:
                await self._warm_up()
                await self._load_to(max(self._num_swaps // 5, 10))
                self.tally.memory_begin_bytes, self.tally.files_begin = await self._measure_at_rest()
                await self._load_to(self._num_swaps)
                self.tally.memory_end_bytes, self.tally.files_end = await self._measure_at_rest()
        finally:
            family = [self._router, *self._router.children(recursive=True)]
            router.terminate()
            with suppress(TimeoutError):
                self.tally.exit_code = await asyncio.wait_for(router.wait(), _END_S)
            if router.returncode is None:
                router.kill()
        await asyncio.sleep(1.0)
        self.tally.left += [f"process {p.pid}: {_words_of(p)}" for p in family if p.is_running()]
        self.tally.left += [f"process {p.pid}: {_words_of(p)}" for p in self._processes_of_this_run()]
        self.tally.left += [f"file {path}" for path in (self._folder / "tmp").rglob("*")]
        self.tally.took_s = round(time.monotonic() - begin_s, 1)

    async def _warm_up(self) -> None:
        """Learns the text of each model."""
        deadline_s = time.monotonic() + 60
        while True:
            with suppress(aiohttp.ClientError):
                async with self._session.get(f"{self._url}/livez"):
                    break
            assert time.monotonic() < deadline_s, "the router does not listen"
            await asyncio.sleep(0.1)
        for name in _NAMES:
            self._expected[name] = await self._complete(name, 12)
        assert len(set(self._expected.values())) == len(_NAMES), "the models must answer differently"

    async def _load_to(self, num_swaps: int) -> None:
        """Runs everything until so many models have been started in all."""
        self._is_ending = False
        actors = [self._client() for _ in range(_NUM_CLIENTS)]
        actors += [self._killer(), self._editor(), self._unloader()]
        tasks = [asyncio.create_task(actor) for actor in actors]
        while self.tally.num_swaps < num_swaps and not any(task.done() for task in tasks):
            await asyncio.sleep(1.0)
            self._count_starts(await self._status())
            self._note_memory()
            print(f"\r{self.tally.num_swaps} swaps, {self.tally.answers}", end="", file=sys.stderr)
        self._is_ending = True
        await asyncio.gather(*tasks)
        self._write_file(_NAMES)

    def _count_starts(self, models: list[dict[str, Any]]) -> None:
        """A model that was removed from the file counts from 0 again."""
        for model in models:
            name, num_starts = model["id"], model["num_starts"]
            before = self._num_starts.get(name, 0)
            self.tally.num_swaps += num_starts - before if num_starts >= before else num_starts
            self._num_starts[name] = num_starts

    def _note_memory(self) -> None:
        if time.monotonic() - self._noted_s >= _BETWEEN_SAMPLES_S:
            self._noted_s = time.monotonic()
            self.tally.series.append((self.tally.num_swaps, _own_bytes(self._router.pid)))

    async def _client(self) -> None:
        while not self._is_ending:
            name = self._random.choice(_NAMES)
            if self._random.random() < 0.15:
                await self._vanish(name)
            else:
                await self._request(name)
            await asyncio.sleep(self._random.choice((0.0, 0.0, self._random.uniform(0, 0.5))))

    async def _vanish(self, name: str) -> None:
        """A client that disconnects at a random moment."""
        body = self._body(name, 200, is_streamed=self._random.random() < 0.5)
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(self._random.choice((0.01, 0.1, 1.0)) * self._random.random()):
                async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
                    await response.read()
        self.tally.count("vanished")

    async def _request(self, name: str) -> None:
        begin_s = time.monotonic()
        try:
            text = await self._complete(name, 12, is_streamed=self._random.random() < 0.5)
        except _FailedRequest as err:
            self._judge(name, begin_s, str(err))
            return
        except (aiohttp.ClientError, TimeoutError) as err:
            self._judge(name, begin_s, f"{type(err).__name__}: {err}")
            return
        self.tally.count("complete")
        if text != self._expected[name]:
            self.tally.wrong.append(f"{name}: {text!r}")

    def _judge(self, name: str, begin_s: float, reason: str) -> None:
        """A request without a complete answer: is it explained by what was done to its model?"""
        if begin_s - self._killed_s.get(name, -1e9) < _AFTER_KILL_S:
            self.tally.count("refused or cut after a kill")
        elif name == _REMOVED and begin_s - self._removed_s < 10:
            self.tally.count("removed")
        else:
            self.tally.lost.append(f"{name} at swap {self.tally.num_swaps}: {reason}")

    async def _complete(self, name: str, max_tokens: int, *, is_streamed: bool = False) -> str:
        body = self._body(name, max_tokens, is_streamed=is_streamed)
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            data = await response.read()
            if response.status != 200:
                raise _FailedRequest(f"{response.status} {data[:300]!r}")
            if not is_streamed:
                answer = json.loads(data)
                assert answer["model"] == name, answer
                return str(answer["choices"][0]["text"])
        events = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
        if not events or events.pop() != b"[DONE]":
            raise _FailedRequest("the stream was cut off")
        parts = [json.loads(event) for event in events]
        if errors := [part["error"] for part in parts if "error" in part]:
            raise _FailedRequest(f"error in the stream: {errors[0]}")
        return "".join(part["choices"][0]["text"] for part in parts if part["choices"])

    def _body(self, name: str, max_tokens: int, *, is_streamed: bool) -> dict[str, Any]:
        common = {"prompt": "Once upon", "temperature": 0, "ignore_eos": True}
        return {"model": name, "max_tokens": max_tokens, "stream": is_streamed, **common}

    async def _killer(self) -> None:
        """One kill in half a minute on average: each is followed by a back-off."""
        while not self._is_ending:
            await self._pause(self._random.uniform(5, 55))
            models = [model for model in await self._status() if model["pid"] is not None]
            if models and not self._is_ending:
                victim = self._random.choice(models)
                self._killed_s[victim["id"]] = time.monotonic() + 1.0
                self.tally.num_kills += 1
                with suppress(ProcessLookupError):
                    os.kill(victim["pid"], signal.SIGKILL)

    async def _editor(self) -> None:
        while not self._is_ending:
            await self._pause(self._random.uniform(3, 12))
            self.tally.num_edits += 1
            match self._random.randrange(4):
                case 0:
                    self._variables[self._random.choice(_NAMES)] += 1
                    self._write_file(_NAMES)
                case 1:
                    self._write_file(_NAMES)  # the same again
                case 2:
                    self._file.write_text("models: {m0: [")
                    await self._pause(2.0)
                    self._write_file(_NAMES)
                case _:
                    self._removed_s = time.monotonic() + 6
                    self._write_file(_NAMES[:-1])
                    await self._pause(3.0)
                    self._write_file(_NAMES)

    async def _unloader(self) -> None:
        while not self._is_ending:
            await self._pause(self._random.uniform(2, 10))
            verb = self._random.choice(("load", "unload", "unload"))
            name = self._random.choice(_NAMES)
            self.tally.num_unloads += 1
            async with self._session.post(f"{self._url}/v1/models/{name}/{verb}") as response:
                await response.read()

    async def _pause(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not self._is_ending:
            await asyncio.sleep(0.1)

    async def _status(self) -> list[dict[str, Any]]:
        async with self._session.get(f"{self._url}/status.json") as response:
            models: list[dict[str, Any]] = (await response.json())["models"]
            return models

    async def _measure_at_rest(self) -> tuple[int, int]:
        """Memory and open files of the router once all models are stopped and their processes gone."""
        await asyncio.sleep(2.0)
        for name in _NAMES:
            async with self._session.post(f"{self._url}/v1/models/{name}/unload") as response:
                await response.read()
        states = [(model["id"], model["status"], model["num_running"]) for model in await self._status()]
        self.tally.left += [
            f"{each} after unload" for each in states if each[1] not in ("stopped", "failed") or each[2]
        ]
        await asyncio.sleep(3.0)
        self.tally.left += [f"socket {path}" for path in (self._folder / "tmp").rglob("*") if _is_model_socket(path)]
        servers = [p for p in self._processes_of_this_run() if "--uds" in _words_of(p)]
        self.tally.left += [f"process {p.pid} after unload: {_words_of(p)}" for p in servers]
        return _own_bytes(self._router.pid), self._router.num_fds()

    def _processes_of_this_run(self) -> list[psutil.Process]:
        """Those that inherited its folder for temporary files."""
        mark = str(self._folder / "tmp")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_alive = process.status() != psutil.STATUS_ZOMBIE
                if is_alive and process.pid != self._router.pid and process.environ().get("TMPDIR") == mark:
                    found.append(process)
        return found

    def _write_file(self, names: tuple[str, ...]) -> None:
        """In one step, as editors do that care."""
        models = {
            name: {"model": str(self._models[name]), "env": [f"SWAP_VARIABLE={self._variables[name]}"]}
            for name in names
        }
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"models": models}))
        new.rename(self._file)


class _FailedRequest(Exception):
    pass


def _save_model(folder: Path, number: int) -> Path:
    """A tiny model whose answers differ from those of the others."""
    import torch
    from safetensors.torch import load_file, save_file

    save_tiny_llama(folder)
    weights = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(number)
    changed = {
        name: torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in load_file(weights).items()
    }
    save_file(changed, weights, metadata={"format": "pt"})
    return folder


def _own_bytes(pid: int) -> int:
    """Memory of a process that no file and no other program has (proc(5), RssAnon)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def _is_model_socket(path: Path) -> bool:
    return path.is_socket() and "standby" not in str(path)


def _words_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())[:200]
    return "?"


def main() -> int:
    """Returns 0 if nothing is lost, wrong, left or grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="file for the router's log")
    options, words = parser.parse_known_args()
    words = words or ["--engine", "embedded", "--max-model-len", "256"]
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder:
        run = _Run(Path(folder), options.swaps, options.seed, words, options.log)
        asyncio.run(run.run())
    result = asdict(run.tally) | {"is_fine": run.tally.is_fine}
    text = json.dumps(result, indent=2)
    print(f"\n{text}")
    if options.json is not None:
        options.json.write_text(text)
    return 0 if run.tally.is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
