"""The examples of many models: the reader takes them without a fault, and the pod fits the program."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from startup.router.models_file.reader import Defaults, read_models_file
from tests.deploy.dockerfile import ROOT
from vllm_cli.commands.probes import ProbeTarget, StartTimes, build_probes
from vllm_cli.flags.arguments import Arguments

_EXAMPLE = ROOT / "deploy" / "models.yaml"
_POD = ROOT / "deploy" / "kubernetes" / "many-models.yaml"
_PAGE = ROOT / "docs" / "many-models.md"


def _documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(_POD.read_text())}


def _page_example() -> str:
    return _PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(_EXAMPLE.read_text(), id="deploy"),
        pytest.param(_documents()["ConfigMap"]["data"]["models.yaml"], id="kubernetes"),
        pytest.param(_page_example(), id="docs"),
    ],
)
def test_the_examples_have_no_fault(text: str, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    read, faults = read_models_file(file, Defaults())
    assert [str(fault) for fault in (*faults, *read.notices)] == []
    assert read.entries


def test_the_first_line_names_the_schema() -> None:
    for file, text in ((_EXAMPLE, _EXAMPLE.read_text()), (_PAGE, _page_example())):
        schema = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / schema).resolve() == ROOT / "startup" / "router" / "models.schema.json"


def test_the_pod_fits_the_program() -> None:
    documents = _documents()
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    arguments = Arguments.parse(container["args"])
    file = Path(arguments.last_value("--models") or "")
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts[str(file.parent)]]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    assert file.name in documents["ConfigMap"]["data"]
    printed = build_probes(ProbeTarget(), StartTimes(seconds=[], factor=4))
    assert {name: probe for name, probe in container.items() if name.endswith("Probe")} == printed
    selector = documents["Deployment"]["spec"]["selector"]["matchLabels"]
    assert documents["Service"]["spec"]["selector"] == selector
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    assert claim == documents["PersistentVolumeClaim"]["metadata"]["name"]
