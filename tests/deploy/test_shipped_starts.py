"""Starts every shipped manifest, unit, image and example with its own words, variables and files."""

import re
import signal

import pytest

from tests.deploy.container_root import ContainerRoot
from tests.deploy.shipped import EXAMPLES, PODS_OF_EMBEDDED, PODS_OF_VLLM, SECRETS, STARTS, pod_start
from tests.e2e.server_process import ServerProcess
from tests.startup.vllm.fake_start import FakeStart, environment
from tests.support.certificates import make_certificate
from tests.support.folders import short_folder
from tests.support.http_client import ask

pytestmark = pytest.mark.thorough
_SAME_WITH_LESS = ("image", "compose")
"""These starts are left out. The baked image and compose with variables start the same with more words."""


@pytest.mark.parametrize("name", [*(name for name in STARTS if name not in _SAME_WITH_LESS), *PODS_OF_EMBEDDED])
def test_it_serves_its_models_to_clients_with_the_key(name, root):
    start = STARTS.get(name) or pod_start(name)
    words, variables = root.prepare(start)
    key = variables.get("VLLM_API_KEY")
    with ServerProcess(words, environment=variables, launcher=root.launcher) as server:
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
        words, variables = root.prepare(pod_start(name))
        with FakeStart(root.home, *words, env=environment(root.home, **variables)) as start:
            if "--headless" in words:
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
