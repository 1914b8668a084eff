"""The arguments of a start are cut once in each process that reads them, and then handed on."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.startup.vllm.fake_start import CHECKED, FAKE, ROOT
from tests.support.cli import run_cli
from tests.support.ports import free_port
from tests.support.standby_process import OFF, StandbyProcess

_COUNTED = """
import json, os
from startup.settings import serve_arguments

cut = serve_arguments.cut

def counted(arguments):
    with open(os.environ["CUTS"], "a") as file:
        file.write(json.dumps([os.getpid(), list(arguments)]) + "\\n")
    return cut(arguments)

serve_arguments.cut = counted
"""


@pytest.fixture
def counted(tmp_path: Path) -> dict[str, str | None]:
    """Variables of processes that write the arguments they cut to a file."""
    (tmp_path / "sitecustomize.py").write_text(_COUNTED)
    path = f"{tmp_path}:{FAKE}:{ROOT}"
    return {**CHECKED, "CUTS": str(tmp_path / "cuts"), "PYTHONPATH": path, "VLLM_CACHE_ROOT": str(tmp_path / "cache")}


def _cuts(counted: dict[str, Any], *arguments: str, **variables: str) -> list[list[list[str]]]:
    """Runs `serve`. Returns the arguments that it cuts, by process."""
    environment = {n: v for n, v in {**os.environ, **counted, **variables}.items() if v is not None}
    done = run_cli("serve", *arguments, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    by_process = defaultdict(list)
    for line in Path(counted["CUTS"]).read_text().splitlines():
        pid, cut = json.loads(line)
        by_process[pid].append(cut)
    return list(by_process.values())


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_a_cold_start_cuts_its_arguments_once(counted, tiny_llama, engine):
    arguments = [str(tiny_llama), "--engine", engine, "--preflight-only", "--max-model-len", "64"]
    assert _cuts(counted, *arguments, **OFF) == [[arguments]]


def test_front_process_and_forked_server_cut_the_arguments_once_each(counted, tiny_llama):
    arguments = [str(tiny_llama), "--engine", "embedded", "--preflight-only", "--port", str(free_port())]
    with StandbyProcess(environment={n: v for n, v in counted.items() if v is not None}) as standby:
        assert _cuts(counted, *arguments, **standby.environment) == [[arguments], [arguments]]
