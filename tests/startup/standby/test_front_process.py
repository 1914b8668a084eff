"""The front process imports few modules, because a warm start waits for them."""

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_LIST = """
import sys
sys.path.insert(0, sys.argv[1])
from vllm_cli import own_packages
from base.machine import command_line
from startup.standby import forwarding, front_process
print(*sorted(sys.modules))
"""


def test_a_warm_start_imports_neither_click_nor_typing():
    listed = subprocess.run([sys.executable, "-I", "-S", "-c", _LIST, _ROOT], stdout=subprocess.PIPE, check=True)
    loaded = set(listed.stdout.decode().split())
    assert loaded > {"startup.settings.serve_words", "startup.processes.messages", "startup.standby.sockets"}
    assert loaded & {"click", "typing", "dataclasses", "logging", "pathlib", "re", "subprocess"} == set()
