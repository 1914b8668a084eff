"""Measures the memory of each process of a command, and prints a table in Markdown.

    python -m tools.process_memory "vllm-cli serve MODEL" "vllm-cli wait && vllm-cli chat -q Hi"

The second command runs beside the first. When it has ended, the first one is measured at rest, and ended.
The memory of a process is its PSS: a page that several processes share counts in part for each of them.
"""

import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final

import click

from base.machine.hardware import cpu_model
from base.machine.processes import child_pids

_POLL_S: Final = 0.02
_SETTLED_S: Final = 3.0
_ROLES: Final = {
    "VLLM::": "engine, workers",
    " prefetch ": "prefetch",
    "standby-template": "template process",
    "forkserver import": "forkserver",
    "resource_tracker import": "resource tracker",
    " standby ": "standby",
}
"""Words of a command line -> name of the process. A process without them is a fork of its parent."""
_FORKS: Final = {"forkserver": "engine", "template process": "server", "standby": "template process"}


def main(command: str, until: str) -> None:
    """Prints the table."""
    most: dict[str, Counter[str]] = {}
    with subprocess.Popen(["sh", "-c", f"exec {command}"], start_new_session=True) as process:
        with subprocess.Popen(["sh", "-c", until]) as other:
            while other.poll() is None and process.poll() is None:
                for name, values in _measure(process.pid).items():
                    most[name] = most.get(name, Counter()) | values
                time.sleep(_POLL_S)
        time.sleep(_SETTLED_S)
        at_rest = _measure(process.pid)
        process.terminate()
    click.echo(f"{cpu_model()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d', time.gmtime())}: {command}\n")
    click.echo("| process | MiB at rest | without files | most until then | without files |\n|---|---|---|---|---|")
    for name, peak in most.items():
        now = at_rest.get(name, Counter())
        click.echo(f"| {name} | {now['Pss']} | {now['own']} | {peak['Pss']} | {peak['own']} |")


def _measure(root: int) -> dict[str, Counter[str]]:
    """Name of a process -> its MiB. `own` leaves out pages of files, which the kernel can drop."""
    found: dict[str, Counter[str]] = {}
    _add_tree(found, root, "launcher", is_root=True)
    return {"all": sum(found.values(), Counter()), **found}


def _add_tree(found: dict[str, Counter[str]], pid: int, parent: str, *, is_root: bool = False) -> None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    except OSError:  # the process has ended
        return
    role = next((role for text, role in _ROLES.items() if text in words), parent)
    name = _FORKS.get(parent, "responder") if role == parent and not is_root else role
    sizes = {line[0][:-1]: int(line[1]) >> 10 for line in lines[1:]}
    memory = Counter(Pss=sizes["Pss"], own=sizes["Pss_Anon"] + sizes["Pss_Shmem"])
    found[name] = found.get(name, Counter()) + memory
    for child in child_pids(pid):
        _add_tree(found, child, name)


if __name__ == "__main__":
    click.command()(click.argument("command")(click.argument("until")(main)))()
