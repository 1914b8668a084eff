"""Parses the Dockerfile into instructions by stage."""

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Instruction(NamedTuple):
    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The words of the exec form, or those between spaces."""
        if self.value.startswith("["):
            return [str(word) for word in json.loads(self.value)]
        return self.value.split()


def read_stages(path: Path = ROOT / "Dockerfile") -> list[list[Instruction]]:
    """The instructions of each stage, without those before the first FROM."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            stages.append([])
        if name and stages:
            stages[-1].append(Instruction(name, value.strip()))
    return stages


def last(stage: list[Instruction], name: str) -> Instruction:
    return [instruction for instruction in stage if instruction.name == name][-1]
