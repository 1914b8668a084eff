"""Reads from the shipped files and the documentation which words, variables and files they start with."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from tests.deploy.manifests import POD_NAMES, pod_of, render
from tests.test_docs import PAGES, README
from tools.generated_docs import walk_commands

ROOT = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
SECRETS: Final = {"api-key": "key-of-a-secret", "hf-token": "hf_of_a_secret"}
_BLOCK: Final = re.compile(r"^```(sh|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN_OF_IMAGE: Final = re.compile(r"^docker run (?!.*--entrypoint).*? vllm-cli(?= |$)", re.MULTILINE)


class Instruction(NamedTuple):
    name: str
    value: str

    @property
    def arguments(self) -> list[str]:
        """The words of the exec form. Otherwise, the value split at spaces."""
        if self.value.startswith("["):
            return [str(argument) for argument in json.loads(self.value)]
        return self.value.split()


def read_stages(path: Path = ROOT / "Dockerfile") -> list[list[Instruction]]:
    """The instructions of each stage. Instructions before the first FROM are left out."""
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


@dataclass(frozen=True)
class Start:
    """The words and variables that a container runtime or systemd executes, and the files that these read."""

    arguments: list[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def serve_arguments(self) -> list[str]:
        """The words after `vllm-cli serve`."""
        program, command, *arguments = self.arguments
        assert (Path(program).name, command) == ("vllm-cli", "serve")
        return arguments


@dataclass(frozen=True)
class Example:
    """A shell script, and the models files that a page shows with it."""

    script: str
    files: Mapping[str, str]

    @classmethod
    def of_page(cls, text: str) -> "Example":
        """The blocks of a page that start servers, with the entrypoint before arguments of containers."""
        blocks: dict[str, list[str]] = {"sh": [], "yaml": []}
        for kind, block in _BLOCK.findall(text):
            blocks[kind].append(block)
        pods = [arguments for block in blocks["yaml"] if (arguments := yaml.safe_load(block).get("args"))]
        entrypoint = shlex.join(_image().arguments)
        shell = [_RUN_OF_IMAGE.sub(entrypoint, block) for block in blocks["sh"]]
        shell += [f"{entrypoint} {shlex.join(arguments)}" for arguments in pods]
        script = "\n".join(block for block in shell if "vllm-cli serve" in block)
        names = dict.fromkeys(re.findall(r"--models (\S+\.yaml)", script))
        models = [block for block in blocks["yaml"] if re.search("^models:", block, re.MULTILINE)]
        return cls(script, dict(zip(names, models, strict=False)))

    @classmethod
    def of_help(cls, text: str) -> "Example":
        """The lines below `Examples:`."""
        return cls(text.partition("Examples:\n")[2].partition("\n\n")[0], _models().files)


def pod_start(name: str) -> Start:
    """The start of the container of a pod of `manifests.POD_NAMES`. Optional secrets exist."""
    documents, pod = render(name.partition(" ")[0]), pod_of(name)["spec"]
    group = documents.get("LeaderWorkerSet", {}).get("spec", {}).get("leaderWorkerTemplate", {})
    [container] = pod["containers"]
    is_baked = "command" not in container and "args" not in container
    image = _image(DEPLOY / "docker" / "baked.Dockerfile") if is_baked else _image()
    if container["image"] != "vllm-cli":
        image = Start([*image.arguments[:2], "--engine", "vllm", *image.arguments[2:]])
    sources = {volume["name"]: volume.get("configMap") for volume in pod["volumes"]}
    files = {
        f"{mount['mountPath']}/{file}": text
        for mount in container["volumeMounts"]
        if sources[mount["name"]]
        for file, text in documents["ConfigMap"]["data"].items()
    }
    variables = {
        variable["name"]: variable.get("value") or SECRETS[variable["valueFrom"]["secretKeyRef"]["key"]]
        for variable in container["env"]
    }
    known = {
        "LWS_GROUP_SIZE": str(group.get("size")),
        "LWS_WORKER_INDEX": "1" if name.endswith("worker") else "0",
        "LWS_LEADER_ADDRESS": "vllm-cli-nodes-0.vllm-cli-nodes.default",
    }
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], argument)
        for argument in [*container.get("command", image.arguments), *container.get("args", [])]
    ]
    return Start(arguments, {**image.variables, **variables}, files)


def _image(path: Path = ROOT / "Dockerfile") -> Start:
    """The start of a container of the image, without words. Another Dockerfile may extend the image."""
    stage = read_stages()[-1]
    commands = [step.arguments for step in read_stages(path)[-1] if step.name == "CMD"]
    variables = dict(argument.split("=", 1) for argument in shlex.split(last(stage, "ENV").value))
    return Start([*last(stage, "ENTRYPOINT").arguments, *sum(commands, [])], variables)


def _compose(**given: str) -> Start:
    def fill(text: str) -> str:
        return re.sub(r"\$\{(\w+):-(.*?)\}", lambda found: given.get(found[1], found[2]), text)

    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["llm"]
    arguments = [*_image().arguments, *(fill(argument) for argument in service["command"])]
    return Start(
        arguments, {**_image().variables, **{name: fill(text) for name, text in service["environment"].items()}}
    )


def _unit() -> Start:
    """The start of the system's unit, with the configuration in the unit's first lines and an API key."""
    text = (DEPLOY / "systemd" / "vllm-cli.service").read_text()
    [(path, configuration)] = re.findall(r"(/etc/\S+) \(`(.*)`\)", text)
    [arguments, variables] = (
        re.findall(f"^{name}=(.*)", text, re.MULTILINE)[0] for name in ("ExecStart", "Environment")
    )
    given = dict(argument.split("=", 1) for argument in shlex.split(variables))
    return Start(shlex.split(arguments), given | {"VLLM_API_KEY": SECRETS["api-key"]}, {path: configuration})


def _models() -> Start:
    """The start with the command in the first lines of deploy/models.yaml."""
    text = (DEPLOY / "models.yaml").read_text()
    arguments = re.findall(r": (vllm-cli serve .*)", text)[0].split()
    return Start(arguments, {**_image().variables, "VLLM_API_KEY": SECRETS["api-key"]}, {arguments[-1]: text})


STARTS: Final = {
    "image": _image(),
    "baked image": _image(DEPLOY / "docker" / "baked.Dockerfile"),
    "compose": _compose(),
    "compose with variables": _compose(VLLM_API_KEY=SECRETS["api-key"], MODEL="Qwen/Qwen3-0.6B"),
    "systemd": _unit(),
    "models": _models(),
}
PODS_OF_VLLM: Final = [name for name in POD_NAMES if name.startswith("vllm")]
PODS_OF_EMBEDDED: Final = [name for name in POD_NAMES if name not in PODS_OF_VLLM]
EXAMPLES: Final = {
    **{page.name: Example.of_page(page.read_text()) for page in (README, *PAGES)},
    **{f"help of {name}": Example.of_help(command.help or "") for name, command in walk_commands()},
}
