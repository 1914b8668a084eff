"""Puts all packages of the wheel inside vllm_cli, so that site-packages gets only one name.

The folders of this repository keep their places and the names by which they import each other
(vllm_cli/own_packages.py). All other settings are in pyproject.toml.
"""

import shutil
import sys

from setuptools import find_packages, setup

INSIDE = ("base", "envs", "router", "server", "startup")
IS_EDITABLE = "editable_wheel" in sys.argv  # they are found beside vllm_cli; to map them would take an import hook

shutil.rmtree("build/lib", ignore_errors=True)  # what an earlier build has left would get into the wheel

inside = {f"vllm_cli.packages.{top}": top for top in INSIDE if not IS_EDITABLE}
setup(
    packages=[
        *find_packages(include=["vllm_cli", "vllm_cli.*"]),
        *(f"vllm_cli.packages.{name}" for top in inside.values() for name in find_packages(include=[top, f"{top}.*"])),
    ],
    package_dir=inside,
)
