"""Every rendered manifest, and every resource in docs/containers.md, fits the schema of its kind."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from startup.settings.serve_arguments import LauncherLine
from startup.vllm_arguments.vllm_line import VllmLine
from tests.deploy.manifests import POD_NAMES, VARIANTS, Document, pod_of, render, render_kustomization
from tests.deploy.shipped import ROOT
from tests.test_docs import HANG_S

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1200)]
_CUSTOM = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text())


def _blocks(page: str) -> list[Any]:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def of_page() -> dict[str, Document]:
    """The rendered kustomization of docs/containers.md."""
    [own] = [block for block in _blocks("containers") if block.get("kind") == "Kustomization"]
    folders = {
        name: [folder.removeprefix("deploy/kubernetes/") for folder in own.pop(name)]
        for name in ("resources", "components")
    }
    return render_kustomization(**folders, **own)


def _deployed(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


def test_charts_of_others_start_the_launcher_with_words_that_it_takes_and_time_to_stop():
    """The words are those of the chart's template and of KServe's runtime (custom_resources.yaml)."""
    service = _deployed("kserve/inference-service.yaml")["spec"]["predictor"]["model"]
    runtime = ["--port=8080", "--served-model-name=x", "--model=/mnt/models"]
    [model] = _deployed("helm/production-stack.yaml")["servingEngineSpec"]["modelSpec"]
    chart = ["serve", model["modelURL"], "--host", "0.0.0.0", "--port", "8000", "--enable-prefix-caching"]
    for command, arguments in (
        (service["command"], [*runtime, *service["args"]]),
        (["vllm", chart[0]], [*chart[1:], *model["vllmConfig"]["extraArgs"]]),
    ):
        assert command == ["vllm", "serve"]
        line = VllmLine.of(LauncherLine(arguments).engine_arguments)
        assert float(line.value("--shutdown-timeout") or 0) + HANG_S == 30  # what a pod has that sets no value


def test_all_manifests_and_pods_fit_the_schemas_of_kubernetes(of_page, validate):
    pods = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod_of(name)}
        for name in POD_NAMES
    ]
    rendered = [*(render(variant) for variant in VARIANTS), of_page]
    documents = pods + [one for each in rendered for kind, one in each.items() if kind not in _CUSTOM]
    done = validate(documents)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = pods[0] | {"template": pods[0]["template"] | {"metadata": {"label": {}}}}
    assert validate([wrong]).returncode != 0


def test_resources_of_other_projects_fit_their_definitions(of_page):
    shown = {block["kind"]: block for block in _blocks("containers") if block.get("kind") in _CUSTOM}
    given = {"InferenceService": _deployed("kserve/inference-service.yaml")}
    given["LlmStack"] = {"spec": _deployed("helm/production-stack.yaml")["servingEngineSpec"]}
    checked = set()
    for documents in (*(render(variant) for variant in VARIANTS), of_page, shown, given):
        for kind in documents.keys() & _CUSTOM.keys():
            jsonschema.validate(documents[kind]["spec"], _CUSTOM[kind])
            checked.add(kind)
    assert checked == _CUSTOM.keys()


def test_a_kustomization_changes_image_model_sizes_and_models(of_page):
    [container] = of_page["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "your-registry/vllm-with-vllm-cli:1"
    assert container["args"][0] == "Qwen/Qwen3-8B"
    assert container["resources"]["limits"] == {"memory": "128Gi", "nvidia.com/gpu": "1"}
    assert of_page["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == "200Gi"
    assert {document["metadata"]["namespace"] for document in of_page.values()} == {"llm"}
    [own] = [block for block in _blocks("many-models") if "patches" in block]
    rendered = render_kustomization(["embedded"], ["components/many-models"], **own)
    assert [*yaml.safe_load(rendered["ConfigMap"]["data"]["models.yaml"])["models"]] == ["mine"]


@pytest.mark.parametrize("name", ["two-nodes", "kserve"])
def test_images_are_replaced_wherever_a_pod_is(name):
    images = [{"name": "vllm-with-vllm-cli", "newName": "other"}]
    rendered = render_kustomization(["vllm"], [f"components/{name}"], images=images)
    text = yaml.safe_dump_all(rendered.values())
    assert re.findall(r"image: (.*)", text) == ["other"] * (2 if name == "two-nodes" else 1)
