"""Two replicas behind haproxy are replaced while requests arrive, with the times of the manifest."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.containers.podman import Container
from tests.containers.rollout import Balancer, Deployment, Load
from tests.containers.vllm_image import STAND_IN, mount_of
from tests.deploy.manifests import pod_of
from tests.support.peer_vllm import PYTHON
from tests.support.ports import free_port

_REST_S = 3.0


class _Server(NamedTuple):
    """What is rolled out."""

    pod: str  # of the manifests: its times and its readiness probe are used
    image: str
    rate: float  # requests a second, which two cores serve beside a start
    words: tuple[str, ...]
    options: tuple[str, ...] = ()


@pytest.fixture
def embedded(image: str) -> _Server:
    return _Server("embedded", image, rate=10, words=("--shutdown-timeout=25",))


@pytest.fixture
def vllm(vllm_image: str) -> _Server:
    """vLLM's attention for CPUs needs larger heads than the model has. The weights are made in the start."""
    words = ("--shutdown-timeout=45", "--enforce-eager", "--load-format=dummy", '--hf-overrides={"head_dim": 32}')
    variables = "HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1"
    options = (mount_of(PYTHON), "--shm-size=1g", *(f"--env={variable}" for variable in variables.split()))
    return _Server("vllm", vllm_image, rate=2, words=words, options=options)


@pytest.fixture
def plain_vllm(vllm: _Server) -> _Server:
    return vllm._replace(image=STAND_IN)


@pytest.fixture
def under_load(tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Starts a server's replicas, then the requests. `hook_s` and `grace_s` are the manifest's by default."""

    @contextmanager
    def under_load(server: _Server, **times: float) -> Iterator[tuple[Deployment, Load]]:
        spec = pod_of(server.pod)["spec"]
        [container] = spec["containers"]
        [_, hook_s] = container["lifecycle"]["preStop"]["exec"]["command"]
        times = {"hook_s": float(hook_s), "grace_s": spec["terminationGracePeriodSeconds"]} | times
        probe = container["readinessProbe"]["httpGet"]["path"]

        def create(port: int) -> Container:
            """A container whose model is a new copy, as a new revision is."""
            model = shutil.copytree(tiny_llama, tmp_path / f"{time.monotonic_ns()}")
            options = (f"--volume={model}:/model:ro", "--user=0", *server.options)
            words = ("/model", "--served-model-name=model", *server.words)
            return Container(server.image, *words, options=options, port=port)

        with (
            Balancer(tmp_path, [free_port() for _ in range(3)], probe) as balancer,
            Deployment(balancer, create, **times) as deployment,
            Load(balancer.port, request.config.getoption("--rate", None) or server.rate) as load,
        ):
            time.sleep(_REST_S)
            yield deployment, load
            time.sleep(_REST_S)

    return under_load


@pytest.mark.parametrize(("name", "num_rollouts"), [("embedded", 10), ("vllm", 1), ("plain_vllm", 1)])
def test_no_request_is_lost_with_the_times_of_the_manifest(name, num_rollouts, under_load, request):
    """Streams are whole, and no server answers that is not ready. What plain vLLM loses is only printed."""
    with under_load(request.getfixturevalue(name)) as (deployment, load):
        for _ in range(request.config.getoption("--rollouts", None) or num_rollouts):
            deployment.replace_all()
            print(load.report(), f"seconds until ready: {deployment.ready_s}", flush=True)
    if name != "plain_vllm":
        assert set(load.endings) == {"answered"}, load.report()
        assert set(deployment.exit_codes) == {0}


def test_without_the_hook_requests_are_rejected(embedded, under_load):
    """Until the load balancer knows that the pod ends. Some meet a port that is closed already."""
    with under_load(embedded, hook_s=0) as (deployment, load):
        deployment.replace_all()
    print(load.report())
    assert {*load.endings} - {"lost"} == {"answered", "rejected"}, load.report()


def test_a_killed_replica_loses_requests_only_until_the_balancer_knows(embedded, under_load):
    with under_load(embedded) as (deployment, load):
        deployment.crash()
    print(load.report())
    late = [result for result in load.results if result.end_s - result.took_s > deployment.removed_s]
    assert {result.ending for result in late} == {"answered"}, load.report()


def test_a_grace_period_that_is_too_short_cuts_streams(embedded, under_load):
    with under_load(embedded, grace_s=5) as (deployment, load):
        for _ in range(40):  # they last longer than both stops, even where four take 5 s
            load.send(4000)
        deployment.replace_all()
    print(load.report())
    assert 137 in deployment.exit_codes
    assert set(load.endings) == {"answered", "lost"}, load.report()
