"""Two replicas behind haproxy are replaced while 50 requests a second arrive."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers.podman import Container, podman
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


@contextmanager
def _under_load(
    create: Callable[[int], Container], folder: Path, *, hook_s: float, grace_s: float
) -> Iterator[tuple[Deployment, Load]]:
    with (
        Balancer(folder, [free_port() for _ in range(3)], "/readyz") as balancer,
        Deployment(balancer, create, hook_s=hook_s, grace_s=grace_s) as deployment,
        Load(balancer.port) as load,
    ):
        time.sleep(_REST_S)
        yield deployment, load
        time.sleep(_REST_S)


def test_no_request_is_lost_in_rollouts_with_the_manifest(create, tmp_path, request):
    """Streams are whole, and no server answers that is not ready."""
    spec = pod_of("embedded")["spec"]
    [_, hook_s] = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    times = {"hook_s": float(hook_s), "grace_s": spec["terminationGracePeriodSeconds"]}
    with _under_load(create, tmp_path, **times) as (deployment, load):
        for _ in range(request.config.getoption("--rollouts", 10)):
            deployment.replace_all()
    print(load.report())
    assert set(load.endings) == {"answered"}, load.report()
    assert set(deployment.exit_codes) == {0}


def test_a_killed_replica_loses_only_its_own_requests(create, tmp_path):
    with _under_load(create, tmp_path, hook_s=0, grace_s=45) as (deployment, load):
        podman("kill", "--signal=KILL", deployment.replicas[0].name)
        time.sleep(15)
    print(load.report())


def test_a_grace_period_that_is_too_short_cuts_streams(create, tmp_path):
    with _under_load(create, tmp_path, hook_s=0, grace_s=5) as (deployment, load):
        deployment.replace_all()
    print(load.report())
    print(deployment.exit_codes)
