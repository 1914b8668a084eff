"""Records modules imported by threads other than the main one, which may get a half-initialised module."""

import subprocess
import sys

_WATCH = """
import asyncio, sys, threading
from pathlib import Path
seen = []
def hook(event, args):
    if event == 'import' and threading.current_thread() is not threading.main_thread(): seen.append(args[0])
sys.addaudithook(hook)
"""


def run_watched(code: str, *arguments: object) -> str:
    """Runs code in a new process, in which `seen` lists these modules; returns its output."""
    command = [sys.executable, "-c", _WATCH + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
