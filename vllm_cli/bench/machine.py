"""Describes the machine of a run, so that figures of different machines are not compared by mistake."""

import os
import platform

import psutil

from vllm_cli.bench.results import Machine
from vllm_cli.machine import cpu_model


def describe_machine() -> Machine:
    """The properties of this machine that influence figures."""
    return Machine(
        system=platform.platform(terse=True),
        processor=cpu_model(),
        num_cpus=_num_cpus(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        python=platform.python_version(),
    )


def _num_cpus() -> int:
    """Processors that this process and its servers may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
