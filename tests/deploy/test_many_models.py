"""The examples of many models: their schema, and what surrounds the container of the pod."""

import yaml

from tests.deploy.dockerfile import ROOT
from vllm_cli.commands.probes import ProbeTarget, build_probes

_EXAMPLE = ROOT / "deploy" / "models.yaml"
_POD = ROOT / "deploy" / "kubernetes" / "many-models.yaml"
_PAGE = ROOT / "docs" / "many-models.md"


def test_the_first_line_names_the_schema():
    of_page = _PAGE.read_text().partition("```yaml\n")[2]
    for file, text in ((_EXAMPLE, _EXAMPLE.read_text()), (_PAGE, of_page)):
        schema = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / schema).resolve() == ROOT / "startup" / "router" / "models.schema.json"


def test_the_pod_has_the_printed_probes_its_volumes_and_a_service():
    documents = {document["kind"]: document for document in yaml.safe_load_all(_POD.read_text())}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    printed = build_probes(ProbeTarget())
    assert {name: probe for name, probe in container.items() if name.endswith("Probe")} == printed
    selector = documents["Deployment"]["spec"]["selector"]["matchLabels"]
    assert documents["Service"]["spec"]["selector"] == selector
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    assert claim == documents["PersistentVolumeClaim"]["metadata"]["name"]
