"""Manifests for vLLM: they match the schemas of Kubernetes and LeaderWorkerSet and vLLM's command line."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from startup.serve_words import ServeWords
from startup.vllm.command_line import CommandLine
from tests.deploy.shipped import ROOT, STARTS
from vllm_cli.flags.engine_choice import choose_engine

FOLDER = ROOT / "deploy" / "kubernetes"
DEPLOYMENT = FOLDER / "vllm-deployment.yaml"
WORKER_SET = FOLDER / "vllm-leaderworkerset.yaml"
VLLM_FLAGS = ROOT / "tests" / "vllm_cli" / "vllm_flags.txt"

_COUNT = {"type": "integer", "minimum": 0}
_COUNT_OR_SHARE = {"anyOf": [_COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]}
_TEMPLATE = {"type": "object", "required": ["spec"]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


LEADER_WORKER_SET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "leaderworkerset.x-k8s.io/v1"},
    kind={"const": "LeaderWorkerSet"},
    metadata={"type": "object", "required": ["name"]},
    spec=_object(
        ["leaderWorkerTemplate"],
        replicas=_COUNT,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=_object(
            ["type"],
            type={"const": "RollingUpdate"},
            rollingUpdateConfiguration=_object(
                ["maxUnavailable", "maxSurge"],
                partition=_COUNT,
                maxUnavailable=_COUNT_OR_SHARE,
                maxSurge=_COUNT_OR_SHARE,
            ),
        ),
        networkConfig=_object(["subdomainPolicy"], subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
        leaderWorkerTemplate=_object(
            ["workerTemplate"],
            leaderTemplate=_TEMPLATE,
            workerTemplate=_TEMPLATE,
            size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": ["RecreateGroupOnPodRestart", "None"]},
            subGroupPolicy=_object(["subGroupSize"], subGroupSize={"type": "integer", "minimum": 1}),
        ),
    ),
)
"""The fields of the public API reference, v1; Kubernetes' schema covers the pods."""


def _documents(path: Path) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}


def _groups() -> dict[str, Any]:
    return dict(_documents(WORKER_SET)["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"])


def _pods() -> dict[str, dict[str, Any]]:
    groups = _groups()
    return {
        "deployment": _documents(DEPLOYMENT)["Deployment"]["spec"]["template"],
        "leader": groups["leaderTemplate"],
        "worker": groups["workerTemplate"],
    }


def _words(pod: str) -> list[str]:
    """The launcher's arguments, with the values of the controller's variables."""
    name = DEPLOYMENT.stem if pod == "deployment" else f"{WORKER_SET.stem} {pod}"
    return STARTS[name].serve_words


def test_the_worker_set_fits_the_api_reference():
    document = _documents(WORKER_SET)["LeaderWorkerSet"]
    Draft202012Validator(LEADER_WORKER_SET).validate(document)
    wrong = copy.deepcopy(document)
    wrong["spec"]["leaderWorkerTemplate"]["restartPolicy"] = "Always"
    with pytest.raises(ValidationError):
        Draft202012Validator(LEADER_WORKER_SET).validate(wrong)


@pytest.mark.parametrize("pod", ["deployment", "leader", "worker"])
def test_its_arguments_are_vllm_s_flags(pod):
    assert choose_engine(_words(pod)) == "vllm"
    line = CommandLine.of(ServeWords(_words(pod)).engine_words)
    known = {word for text in VLLM_FLAGS.read_text().splitlines() for word in text.split()}
    assert line.model
    assert set(line.values) <= known
    assert line.listens == (pod != "worker")


def test_leader_and_workers_form_one_group():
    lines = {pod: dict(CommandLine.of(ServeWords(_words(pod)).engine_words).values) for pod in ("leader", "worker")}
    leader, worker = lines["leader"], lines["worker"]
    assert (leader.pop("--node-rank"), worker.pop("--node-rank")) == ("0", "1")
    assert worker.pop("--headless") == ""
    assert leader == worker
    assert int(leader["--pipeline-parallel-size"]) == _groups()["size"] == int(leader["--nnodes"])
    for pod in ("leader", "worker"):
        [container] = _pods()[pod]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == leader["--tensor-parallel-size"]


@pytest.mark.parametrize("pod", ["deployment", "leader", "worker"])
def test_pods_have_time_for_the_drain_and_shared_memory_for_the_ranks(pod):
    spec = _pods()[pod]["spec"]
    [container] = spec["containers"]
    timeout_s = CommandLine.of(_words(pod)).values["--shutdown-timeout"]
    assert spec["terminationGracePeriodSeconds"] > int(timeout_s)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    assert variables["VLLM_CACHE_ROOT"].startswith("/cache/")
    assert set(volumes) == set(mounts.values())


@pytest.mark.parametrize("pod", ["deployment", "leader"])
def test_probes_use_vllm_s_health_route(pod):
    [container] = _pods()[pod]["spec"]["containers"]
    probes = [probe for name, probe in container.items() if name.endswith("Probe")]
    assert [probe["httpGet"] for probe in probes] == [{"path": "/health", "port": 8000}] * 3


@pytest.mark.parametrize("path", [DEPLOYMENT, WORKER_SET], ids=lambda path: path.stem)
def test_services_select_pods_that_listen(path):
    selector = _documents(path)["Service"]["spec"]["selector"]
    pods = {name: pod for name, pod in _pods().items() if (name == "deployment") == (path == DEPLOYMENT)}
    chosen = [name for name, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()]
    assert chosen == [name for name in pods if name != "worker"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_vllm_manifests_fit_the_schema_of_kubernetes(linters, tmp_path):
    command = [str(linters / "kubernetes-validate"), "--strict", "--kubernetes-version", "1.33"]
    templates = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": pod}
        for name, pod in _pods().items()
    ]
    documents = [*_documents(DEPLOYMENT).values(), _documents(WORKER_SET)["Service"], *templates]
    path = tmp_path / "manifests.yaml"
    path.write_text("\n---\n".join(map(json.dumps, documents)))
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(json.dumps(templates[1]).replace("volumeMounts", "mounts"))
    assert subprocess.run([*command, str(wrong)], capture_output=True, timeout=600).returncode != 0
