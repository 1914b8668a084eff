"""Runs the tests marked `versions` with several versions of vLLM, and prints one table.

A version that is not installed under .peers is skipped, with the command that installs it. Before the tests,
the hooks of each version are checked from its sources, as `vllm-cli preload check` does.
"""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import click

from startup.vllm.installed import vllm_in
from startup.vllm.launch.hooks import report_hooks
from vllm_cli.text_table import align

ROOT: Final = Path(__file__).parents[1]
PEERS: Final = ROOT / ".peers"
VERSIONS: Final = ("0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
_HOOKS: Final = "hooks that do not fit"


@dataclass
class Outcome:
    """The results of one test function, over its parameters."""

    num_passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Reasons."""

    def __str__(self) -> str:
        if self.failed:
            return f"FAILED {len(self.failed)} of {self.num_passed + len(self.failed)}"
        return f"passed {self.num_passed}" if self.num_passed else "skipped"


@dataclass
class Run:
    """One version."""

    version: str
    environment: str | None
    """Folder of its virtual environment; None if it is not installed."""
    unfit_hooks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names with the reasons."""
    tests: dict[str, Outcome] = field(default_factory=dict)
    exit_code: int = 0


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the results to a file.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def main(*, report: Path | None, words: tuple[str, ...]) -> None:
    """Run the tests with each version among WORDS; the others are options of pytest."""
    versions = [word for word in words if word[0].isdigit()]
    runs = []
    for version in versions or VERSIONS:
        runs.append(run_version(version, [word for word in words if word not in versions]))
        if report is not None:
            report.parent.mkdir(exist_ok=True)
            report.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    click.echo("\n".join(describe(runs)))
    sys.exit(max(run.exit_code for run in runs))


def run_version(version: str, words: Iterable[str]) -> Run:
    """Checks the hooks and runs the tests, whose output goes to the terminal."""
    environment = find_environment(version)
    if environment is None:
        return Run(version, None)
    run = Run(version, environment.name)
    hooks = report_hooks(vllm_in(_site_packages(environment)), is_installed=False)
    run.unfit_hooks = {finding.hook: finding.reasons for finding in hooks.findings if finding.state == "does not fit"}
    click.echo(f"vLLM {version} in {environment}")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "versions", "tests/vllm_engine", f"--junitxml={results}"]
        done = subprocess.run([*command, *words], cwd=ROOT, env={**os.environ, "PEER_VLLM": environment.name})
        run.exit_code = done.returncode
        run.tests = read_results(results)
    return run


def find_environment(version: str) -> Path | None:
    """The peers' environment with this version: one of its own, or the main one."""
    for environment in (PEERS / f"vllm-{version}", PEERS / "vllm"):
        if (environment / "bin" / "python").exists() and any(
            _site_packages(environment).glob(f"vllm*-{version}.dist-info")
        ):
            return environment
    return None


def read_results(path: Path) -> dict[str, Outcome]:
    """pytest's results by test function, from its JUnit file; empty if it has written none."""
    tests: dict[str, Outcome] = {}
    for case in ET.parse(path).iter("testcase") if path.exists() else ():
        name, _, _ = case.attrib["name"].partition("[")
        outcome = tests.setdefault(f"{case.attrib['classname'].rpartition('.')[2]}: {_spaced(name)}", Outcome())
        if (skipped := case.find("skipped")) is not None:
            outcome.skipped.append(skipped.attrib.get("message", ""))
        elif case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(case.attrib["name"])
        else:
            outcome.num_passed += 1
    return tests


def describe(runs: list[Run]) -> Iterator[str]:
    """Tests by version, then the reasons."""
    names = list(dict.fromkeys(name for run in runs for name in run.tests))
    rows = [("", *(run.version for run in runs))]
    rows += [(name, *(_cell(run, name) for run in runs)) for name in names]
    rows.append((_HOOKS, *(str(len(run.unfit_hooks)) if run.environment else "-" for run in runs)))
    yield from align(rows)
    for run in runs:
        if run.environment is None:
            yield f"{run.version}: skipped; install it with ../shared/peers.sh .peers vllm@{run.version}"
        for name, outcome in run.tests.items():
            yield from (f"{run.version}: {name}: skipped: {reason}" for reason in dict.fromkeys(outcome.skipped))
            yield from (f"{run.version}: {name}: FAILED: {case}" for case in outcome.failed)
        for hook, reasons in run.unfit_hooks.items():
            yield f"{run.version}: the hook {hook!r} does not fit: {'; '.join(reasons)}"


def _cell(run: Run, name: str) -> str:
    if run.environment is None:
        return "-"
    return str(run.tests[name]) if name in run.tests else "not run"


def _site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


def _spaced(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    main()
