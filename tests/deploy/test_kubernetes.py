"""Volumes, users, probes, stop time and starts of all variants' pods, and the resources that select them."""

import re
import signal

import pytest

from base.server_settings import LifecycleConfig
from startup.settings.serve_arguments import LauncherLine
from startup.vllm_arguments.vllm_line import VllmLine
from tests.deploy.container_root import ContainerRoot
from tests.deploy.manifests import COMPONENTS, POD_NAMES, VARIANTS, pod_of, pods_of, render
from tests.deploy.shipped import EXAMPLES, PODS_OF_EMBEDDED, PODS_OF_VLLM, SECRETS, STARTS, pod_start
from tests.e2e.server_process import ServerProcess
from tests.startup.vllm.fake_start import FakeStart, environment
from tests.support.certificates import make_certificate
from tests.support.folders import short_folder
from tests.support.http_client import ask
from tests.test_docs import HANG_S

pytestmark = pytest.mark.thorough

_DRAIN_S = LifecycleConfig().shutdown_timeout_s
_KSERVE_STOP_S = 30
"""terminationGracePeriodSeconds of a pod that sets no value."""


def test_each_component_is_in_a_variant():
    assert {name for _, *components in VARIANTS.values() for name in components} == COMPONENTS


def _line(name: str) -> VllmLine:
    return VllmLine.of(LauncherLine(pod_start(name).serve_arguments).engine_arguments)


@pytest.mark.parametrize("name", POD_NAMES)
def test_a_pod_mounts_its_volumes_has_time_for_the_drain_and_probes(name):
    spec = pod_of(name)["spec"]
    [container] = spec["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts.values())
    is_vllm = name in PODS_OF_VLLM
    shutdown_s = _line(name).value("--shutdown-timeout") or (0 if is_vllm else _DRAIN_S)
    [_, hook_s] = container["lifecycle"]["preStop"]["exec"]["command"]
    if "baked" not in name:  # whose image has flags of its own
        assert spec.get("terminationGracePeriodSeconds", _KSERVE_STOP_S) == float(hook_s) + float(shutdown_s) + HANG_S
    assert {"/cache", "/tmp"} | ({"/dev/shm"} if is_vllm else set()) <= set(mounts)
    probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
    if name.endswith("worker"):
        assert probes == {}
        return
    paths = {"/health"} if is_vllm else {"/readyz", "/livez"}
    assert {probe["httpGet"]["path"] for probe in probes.values()} == paths
    [port] = container["ports"]
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["containerPort"]}
    assert str(port["containerPort"]) == (_line(name).value("--port") or "8000")
    allowed_s = probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"]
    assert allowed_s >= 600 if is_vllm else allowed_s == 600


@pytest.mark.parametrize("name", POD_NAMES)
def test_a_pod_runs_as_an_unprivileged_user_on_a_read_only_root(name):
    spec = pod_of(name)["spec"]
    [container] = spec["containers"]
    own = container["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    both = spec.get("securityContext", {}) | own
    assert (both["runAsNonRoot"], both["runAsUser"]) == (True, 10001)
    assert both["seccompProfile"] == {"type": "RuntimeDefault"}
    if name.endswith("compiled"):
        assert_own_volumes(spec)
    elif not name.endswith("kserve"):  # whose runtimes have no settings of the pod
        assert both["fsGroupChangePolicy"] == "OnRootMismatch"  # else all files are made writable
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)


def assert_own_volumes(spec):
    """A start uses no compile cache to which a group can write, so an init container sets its owner."""
    settings, [init] = spec["securityContext"], spec["initContainers"]
    assert "fsGroup" not in settings
    owner = f"{settings['runAsUser']}:{settings['runAsGroup']}"
    mounts = {mount["mountPath"]: mount["name"] for mount in init["volumeMounts"]}
    own = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts.items() <= own.items()
    assert f"chown {owner} {' '.join(mounts)}" in init["command"][-1]
    assert init["securityContext"]["runAsUser"] == 0
    assert init["securityContext"]["runAsNonRoot"] is False  # the pod's setting would forbid it


def test_a_canary_is_a_deployment_of_its_own_behind_the_same_service():
    base, canary = render("vllm"), render("vllm-canary")
    assert set(canary) == {"Deployment"}
    assert canary["Deployment"]["metadata"]["name"] != base["Deployment"]["metadata"]["name"]
    spec = canary["Deployment"]["spec"]
    assert spec["replicas"] == 1
    assert base["Service"]["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["selector"]["matchLabels"] != base["Deployment"]["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_selects_pods_selects_those_that_it_is_for(variant):
    documents, pods = render(variant), dict(pods_of(variant))

    def chosen(selector: dict[str, str]) -> set[str]:
        return {name for name, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()}

    if "Service" in documents:
        listening = {name for name, pod in pods.items() if "ports" in pod["spec"]["containers"][0]}
        assert chosen(documents["Service"]["spec"]["selector"]) == listening == {*pods} - {f"{variant} worker"}
    for kind in documents.keys() & {"PodDisruptionBudget", "PodMonitor", "NetworkPolicy"}:
        key = "podSelector" if kind == "NetworkPolicy" else "selector"
        assert chosen(documents[kind]["spec"][key]["matchLabels"]) == {*pods}
    volumes = [volume for pod in pods.values() for volume in pod["spec"]["volumes"]]
    for kind, key, name in (
        ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        ("ConfigMap", "configMap", "name"),
    ):
        named = {volume[key][name] for volume in volumes if key in volume}
        assert named == ({documents[kind]["metadata"]["name"]} if kind in documents else set())


def test_nodes_of_a_model_reach_each_other_and_their_service_has_a_name_of_its_own():
    """The controller creates a headless Service with the group's name."""
    documents = render("vllm-two-nodes")
    assert documents["Service"]["metadata"]["name"] != documents["LeaderWorkerSet"]["metadata"]["name"]
    policy = documents["NetworkPolicy"]["spec"]
    among_themselves = [{"podSelector": policy["podSelector"]}]
    assert {"from": among_themselves} in policy["ingress"]
    assert {"to": among_themselves} in policy["egress"]


def test_leader_and_workers_form_one_group():
    leader, worker = (
        {option.name: option.values for option in _line(f"vllm-two-nodes {role}").options}
        for role in ("leader", "worker")
    )
    assert (leader.pop("--node-rank"), worker.pop("--node-rank")) == (("0",), ("1",))
    assert worker.pop("--headless") == ()
    assert leader == worker
    assert leader["--pipeline-parallel-size"] == leader["--nnodes"]
    for role in ("leader", "worker"):
        [container] = pod_of(f"vllm-two-nodes {role}")["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == leader["--tensor-parallel-size"][0]


_SAME_WITH_LESS = ("image", "compose")
"""These starts are left out. The baked image and compose with variables start the same with more words."""


@pytest.mark.parametrize("name", [*(name for name in STARTS if name not in _SAME_WITH_LESS), *PODS_OF_EMBEDDED])
def test_it_serves_its_models_to_clients_with_the_key(name, root):
    start = STARTS.get(name) or pod_start(name)
    arguments, variables = root.prepare(start)
    key = variables.get("VLLM_API_KEY")
    with ServerProcess(arguments, environment=variables, launcher=root.launcher) as server:
        for model in ask(f"{server.url}/v1/models", key=key).json["data"]:
            body = {"model": model["id"], "prompt": "Once", "max_tokens": 1}
            assert ask(f"{server.url}/v1/completions", body, key=key).status == 200, server.log
            assert ask(f"{server.url}/v1/completions", body).status == (401 if key else 200)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, server.log


@pytest.mark.parametrize("name", PODS_OF_VLLM)
def test_it_starts_vllm(name, tiny_llama):
    with short_folder() as folder:
        root = ContainerRoot(folder / "root", tiny_llama, architectures=["FakeForCausalLM"])
        arguments, variables = root.prepare(pod_start(name))
        with FakeStart(root.home, *arguments, env=environment(root.home, **variables)) as start:
            if "--headless" in arguments:
                start.wait_logged("headless engine")
            else:
                start.wait_ready()
            assert start.terminate() == 0, start.log


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if "vllm-cli serve" in example.script])
def test_what_an_example_starts_passes_the_preflight(name, root):
    example = EXAMPLES[name]
    for certificate in re.findall(r"([\w-]+)\.crt", example.script):
        make_certificate(root.home, certificate)
    root.write({"keys.txt": SECRETS["api-key"], **example.files})
    checked = root.run(example.script)
    assert [one for one in checked if one.exit_code] == []
    assert len(checked) == example.script.count("vllm-cli serve")
