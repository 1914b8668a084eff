"""Reads and writes the JSON files of `docs/figures`.

A file has the benchmarks (steps) that ran on one machine on one date. `machines.json` gives each machine a
letter.
"""

import json
import os
import platform
import re
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from base.machine.hardware import cpu_model
from startup.vllm.patches.graphs.graph_proof import RESULT
from tools.figures.running import describe_machine

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "docs" / "figures"
MACHINES: Final = "machines.json"
PEER: Final = ROOT / ".peers" / "vllm" / "bin" / "python"
RUNS_KERNELS: Final = "runs kernels"
"""Member of a file that is false if all its figures are of a stand-in for a GPU."""
_INSTRUCTIONS: Final = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Flag of `lscpu` -> name of the instructions. A machine is described by its first flag in this order."""
_DERIVED: Final = ("summary", "ratios", "spans_end_s", "num_probes")
"""Members left out of a benchmark's JSON, because its rounds give them or because no page shows them."""
_DIGITS: Final = 5
_RELEASE: Final = re.compile(r"^## \[([\d.]+)\] - (\S+)$", re.MULTILINE)
"""The heading of a release in the changelog, with version and date."""


class Measured(NamedTuple):
    """One run of a step on one machine."""

    machine: str
    """The machine's letter in `machines.json`."""
    moment: str
    """The date of the run, and its time if that is known."""
    cores: int
    """The processors that the run could use."""
    result: Mapping[str, Any]

    @property
    def date(self) -> str:
        return self.moment[:10]


class Figures:
    """The figures in all JSON files of a folder, except those with more than two releases since."""

    def __init__(self, folder: Path = FOLDER, changelog: Path = ROOT / "CHANGELOG.md") -> None:
        (self._version, self._release), _, (_, self._oldest), *_ = _RELEASE.findall(changelog.read_text())
        self.machines: dict[str, dict[str, Any]] = json.loads((folder / MACHINES).read_text())
        files = sorted(path for path in folder.glob("*.json") if path.name != MACHINES)
        self._records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in files]

    def runs_of(self, name: str) -> list[Measured]:
        """Returns each machine's newest run of a step, the newest run first. Failed runs are left out."""
        runs: dict[str, Measured] = {}
        for record in self._records:
            step = record.get("steps", {}).get(name)
            passed = step is not None and step["exit_code"] == 0 and step["result"]
            if passed and step["moment"] >= self._oldest:
                run = Measured(record["machine"], step["moment"], step["usable_cores"], step["result"])
                runs[run.machine] = max(run, runs.get(run.machine, run), key=lambda each: each.moment)
        return sorted(runs.values(), key=lambda run: run.moment, reverse=True)

    def describe_age(self, date: str) -> str:
        """The date, and the newest release if that is newer, because its code may have other figures."""
        return date if self.is_new(date) else f"{date}, before {self._version}"

    def is_new(self, date: str) -> bool:
        """Whether the date is not before the newest release."""
        return date >= self._release


class Record:
    """Today's JSON file of this machine. Each step is added after its run."""

    def __init__(self, folder: Path = FOLDER, vllm: Path = PEER, *, has_gpu: bool = False, runs_kernels: bool = True):
        """
        Args:
            folder: where the file is. A new folder gets a copy of `machines.json`.
            vllm: the interpreter of vLLM. If it is missing, the packages of this process are described.
            has_gpu: whether the figures are of this machine's GPUs.
            runs_kernels: whether they are not of a stand-in for a GPU. No page shows the others.
        """
        date = time.strftime("%Y-%m-%d", time.gmtime())
        if not (folder / MACHINES).exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(FOLDER / MACHINES, folder)
        self.described: Final = describe_machine(str(vllm) if vllm.exists() else sys.executable)
        letter = find_letter(folder / MACHINES, self.described["gpus"] if has_gpu else ())
        self.path: Final = folder / f"{letter.lower()}-{date}.json"
        self._known: dict[str, Any] = {"machine": letter, "date": date, "steps": {}}
        if self.path.exists():
            self._known = json.loads(self.path.read_text())
        self._known |= {RUNS_KERNELS: runs_kernels, "lscpu": _lscpu(), "described": self.described}

    def has_passed(self, name: str) -> bool:
        step = self._known["steps"].get(name)
        return step is not None and step["exit_code"] == 0

    def add(self, entry: Mapping[str, Any], work: Path) -> None:
        """Writes an entry that `run_step` returned. A failed run does not replace an earlier good run."""
        name = entry["name"]
        if entry["exit_code"] != 0 and self.has_passed(name):
            return
        written = {key: value for key, value in entry.items() if key not in ("name", "result")}
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        known = {"moment": moment, "commit": _commit(), "usable_cores": len(os.sched_getaffinity(0))}
        step = {**known, **written, "result": _shorten(entry.get("result"))}
        self._known["steps"][name] = step
        text = json.dumps(self._known)
        names = {work: "WORK", ROOT: "ROOT", sys.executable: "PYTHON", platform.release(): _kernel()}
        for own, name in names.items():  # what only this machine has, and its replacement
            text = text.replace(str(own), name)
        self._known = json.loads(text)
        _write(self.path, self._known)


def add_files(source: Path, folder: Path = FOLDER, proof: Path = RESULT) -> None:
    """Adds the files that `make test-gpu` has written to `source`, and its result about late CUDA graphs.

    Raises ClickException for a folder without figures, and for figures of a stand-in for a GPU.
    """
    paths = [path for path in sorted(source.glob("*.json")) if path.name not in (MACHINES, proof.name)]
    if not paths:
        raise click.ClickException(f"{source} has no JSON file of figures; `make test-gpu` writes one")
    found = {path.name: json.loads(path.read_text()) for path in paths}
    for name, added in found.items():
        if not added[RUNS_KERNELS]:
            raise click.ClickException(f"{source / name} is of a stand-in for a GPU: no page shows such figures")
    ours, theirs = (json.loads((each / MACHINES).read_text()) for each in (folder, source))
    for name, added in found.items():
        letter, target = added["machine"], folder / name
        if ours.setdefault(letter, theirs[letter]) != theirs[letter]:
            raise click.ClickException(f"machine {letter} of {source} is another machine in {folder}")
        earlier = json.loads(target.read_text())["steps"] if target.exists() else {}
        passed = {step: entry for step, entry in added["steps"].items() if entry["exit_code"] == 0}
        _write(target, added | {"steps": earlier | (added["steps"] if not earlier else passed)})
    _write(folder / MACHINES, ours)
    if (source / proof.name).exists():
        shutil.copy(source / proof.name, proof)


def _write(path: Path, content: Any) -> None:
    """Replaces the file at once, so that it is complete whenever the run is ended."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def find_letter(path: Path, gpus: Sequence[str] = ()) -> str:
    """This machine's letter. A new machine is added to the file with the next letter.

    If there are `gpus`, as `doctor` describes them, they identify the machine instead of its processor.
    """
    machines = json.loads(path.read_text())
    key: dict[str, Any] = {**(_describe_gpus(gpus) if gpus else _describe_processor()), "cores": os.cpu_count()}
    for letter, machine in machines.items():
        if key.items() <= machine.items():
            return letter
    letter = next(each for each in string.ascii_uppercase if each not in machines)
    memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    machines[letter] = {**key, "memory_gib": memory_gib, "kernel": _kernel(), "note": ""}
    _write(path, machines)
    return letter


def _describe_gpus(gpus: Sequence[str]) -> dict[str, str]:
    name = gpus[0].partition(",")[0]
    return {"processor": f"{'one' if len(gpus) == 1 else len(gpus)} {name}", "instructions": ""}


def _describe_processor() -> dict[str, str]:
    flags = _lscpu().get("Flags", "").split()
    best = next((name for flag, name in _INSTRUCTIONS.items() if flag in flags), platform.machine())
    return {"processor": cpu_model(), "instructions": best}


def _kernel() -> str:
    """The major and minor number of the Linux release."""
    return ".".join(platform.release().split(".")[:2])


def _lscpu() -> dict[str, str]:
    done = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str:
    """The commit, or an empty text in a copy without history, as on a lent machine."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _shorten(value: Any) -> Any:
    """Removes the members `_DERIVED`, and rounds numbers to five digits."""
    if isinstance(value, dict):
        return {name: _shorten(member) for name, member in value.items() if name not in _DERIVED}
    if isinstance(value, list):
        return [_shorten(member) for member in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
