"""Two replicas behind haproxy are replaced while requests arrive, 10 a second by default."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers.podman import Container
from tests.containers.rollout import Balancer, Deployment, Load
from tests.deploy.manifests import pod_of
from tests.support.ports import free_port

_REST_S = 3.0


@pytest.fixture
def create(image: str, tiny_llama: Path, tmp_path: Path) -> Callable[[int], Container]:
    """Makes a container of the image. Its model is a new copy, as a new revision is."""

    def create(port: int) -> Container:
        model = shutil.copytree(tiny_llama, tmp_path / f"{time.monotonic_ns()}")
        words = ("/model", "--served-model-name=model", "--shutdown-timeout=25")
        return Container(image, *words, options=(f"--volume={model}:/model:ro", "--user=0"), port=port)

    return create


@pytest.fixture
def rate(request: pytest.FixtureRequest) -> float:
    """Requests a second."""
    return float(request.config.getoption("--rate", 10))


@contextmanager
def _under_load(
    create: Callable[[int], Container], folder: Path, *, rate: float, hook_s: float, grace_s: float
) -> Iterator[tuple[Deployment, Load]]:
    with (
        Balancer(folder, [free_port() for _ in range(3)]) as balancer,
        Deployment(balancer, create, hook_s=hook_s, grace_s=grace_s) as deployment,
        Load(balancer.port, rate) as load,
    ):
        time.sleep(_REST_S)
        yield deployment, load
        time.sleep(_REST_S)


def _times() -> dict[str, float]:
    """The times of the manifest."""
    spec = pod_of("embedded")["spec"]
    [_, hook_s] = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    return {"hook_s": float(hook_s), "grace_s": spec["terminationGracePeriodSeconds"]}


def test_no_request_is_lost_with_the_times_of_the_manifest(create, rate, tmp_path, request):
    """Streams are whole, and no server answers that is not ready."""
    with _under_load(create, tmp_path, rate=rate, **_times()) as (deployment, load):
        for _ in range(request.config.getoption("--rollouts", 10)):
            deployment.replace_all()
            print(load.report(), flush=True)
    assert set(load.endings) == {"answered"}, load.report()
    assert set(deployment.exit_codes) == {0}


def test_without_the_hook_requests_are_rejected(create, rate, tmp_path):
    """Until the load balancer knows that the pod ends. Some meet a port that is closed already."""
    with _under_load(create, tmp_path, rate=rate, **_times() | {"hook_s": 0}) as (deployment, load):
        deployment.replace_all()
    print(load.report())
    assert {*load.endings} - {"lost"} == {"answered", "rejected"}, load.report()


def test_a_killed_replica_loses_requests_only_until_the_balancer_knows(create, rate, tmp_path):
    with _under_load(create, tmp_path, rate=rate, **_times()) as (deployment, load):
        deployment.crash()
    print(load.report())
    late = [result for result in load.results if result.end_s - result.took_s > deployment.removed_s]
    assert {result.ending for result in late} == {"answered"}, load.report()


def test_a_grace_period_that_is_too_short_cuts_streams(create, rate, tmp_path):
    with _under_load(create, tmp_path, rate=rate, **_times() | {"grace_s": 5}) as (deployment, load):
        for _ in range(4):
            load.send(4000)
        deployment.replace_all()
    print(load.report())
    assert 137 in deployment.exit_codes
    assert set(load.endings) == {"answered", "lost"}, load.report()
