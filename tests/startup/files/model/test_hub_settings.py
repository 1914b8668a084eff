"""We read the hub's variables as its client does. The client reads them in a new interpreter."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from envs import environment
from envs.registry import env, variables
from startup.files.model.hub_settings import hub_endpoints, hub_token, is_offline
from tests.support.cli import python_output

_CLIENT = """
import importlib, json, os, sys
from huggingface_hub import constants, get_token
answers = []
for variables in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(variables)
    importlib.reload(constants)
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    limits = constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT
    answers.append([constants.HF_HUB_CACHE, token, constants.ENDPOINT, constants.HF_HUB_OFFLINE, *limits])
json.dump(answers, sys.stdout)
"""
CASES = [
    "",
    "HF_HOME=/a",
    "HF_HOME=~/a HF_HUB_CACHE=/b",
    "HF_HUB_CACHE=~/b/$PLACE",
    "HUGGINGFACE_HUB_CACHE=/c",
    "HUGGINGFACE_HUB_CACHE=~/c HF_HOME=/a",
    "HUGGINGFACE_HUB_CACHE=/c HF_HUB_CACHE=/b",
    "XDG_CACHE_HOME=/x/${PLACE}",
    "XDG_CACHE_HOME=/x HF_HOME=$PLACE/a",
    "TRANSFORMERS_CACHE=/t PYTORCH_TRANSFORMERS_CACHE=/p",
    "HF_TOKEN=hf_a",
    "HUGGING_FACE_HUB_TOKEN=hf_b",
    "HF_TOKEN=hf_a HUGGING_FACE_HUB_TOKEN=hf_b",
    "HF_TOKEN=\r\n HUGGING_FACE_HUB_TOKEN=hf_b",
    "HF_TOKEN=hf_a\n",
    "HF_TOKEN= HUGGING_FACE_HUB_TOKEN=hf_b",
    "HF_HOME=STORED",
    "HF_HOME=STORED HF_TOKEN=hf_a",
    "HF_TOKEN_PATH=STORED/token",
    "HF_TOKEN_PATH=/nowhere HF_HOME=STORED",
    "HF_HOME=STORED HF_HUB_DISABLE_IMPLICIT_TOKEN=on",
    "HF_TOKEN=hf_a HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
    "HF_TOKEN=hf_a HF_HUB_DISABLE_IMPLICIT_TOKEN=0",
    "HF_ENDPOINT=https://mirror.example/",
    "HF_HUB_OFFLINE=1",
    "HF_HUB_OFFLINE=y",
    "HF_HUB_OFFLINE=Yes",
    "TRANSFORMERS_OFFLINE=ON",
    "HF_HUB_OFFLINE=0 TRANSFORMERS_OFFLINE=1",
    "HF_HUB_OFFLINE= TRANSFORMERS_OFFLINE=1",
    "HF_HUB_ETAG_TIMEOUT=60",
    "HF_HUB_DOWNLOAD_TIMEOUT=70",
    "HF_HUB_ETAG_TIMEOUT=3 HF_HUB_DOWNLOAD_TIMEOUT=90",
    "HF_HUB_ETAG_TIMEOUT=0",
]
_NAMES = {one.partition("=")[0] for case in CASES for one in case.split(" ") if one}


def _variables(case: str, home: Path) -> dict[str, str]:
    """The variables of a case. `home/stored` has a token."""
    given = dict(one.split("=", 1) for one in case.replace("STORED", str(home / "stored")).split(" ") if one)
    return {"HOME": str(home), "PLACE": "here", **given}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "stored").mkdir()
    (folder / "stored" / "token").write_text("hf_stored\n")
    return folder


@pytest.fixture(scope="module")
def answers(home: Path) -> dict[str, list[Any]]:
    """Case -> the settings that the client reads."""
    cases = json.dumps([_variables(case, home) for case in CASES])
    return dict(zip(CASES, json.loads(python_output(_CLIENT, input=cases)), strict=True))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_client_reads_the_same(case, home, answers, monkeypatch):
    for name in (*_NAMES, env.VCLI_HUB_ENDPOINTS.name):
        monkeypatch.delenv(name, raising=False)
    with environment.overlaid(_variables(case, home)):
        found = [str(env.HF_HUB_CACHE.get()), hub_token(), *hub_endpoints(), is_offline()]
        limits = [env.HF_HUB_ETAG_TIMEOUT.get(), env.HF_HUB_DOWNLOAD_TIMEOUT.get()]
    assert [*found, *limits] == answers[case]


def test_every_name_is_declared_or_read_by_no_library():
    declared = {variable.name for variable in variables()}
    assert _NAMES - declared == {"TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"}


def test_a_given_token_needs_no_permission(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_a")
    assert (hub_token(" hf_given\n"), hub_token("")) == ("hf_given", None)


def test_every_name_of_the_client_is_known():
    """A new variable for one of the five purposes must have a case."""
    spec = find_spec("huggingface_hub")
    sources = [Path(spec.origin).with_name("constants.py"), Path(spec.origin).parent / "utils" / "_auth.py"]
    text = "".join(source.read_text() for source in sources)
    found = set(re.findall(r'(?:environ\.get|getenv)\(\s*"(\w+)"', text))
    purposes = re.compile(r"HUB_CACHE|HF_HOME|XDG_CACHE|TOKEN|HF_ENDPOINT|OFFLINE|TIMEOUT")
    by_client_alone = {"HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN"}  # exchanged at the hub
    assert {name for name in found if purposes.search(name)} - by_client_alone <= _NAMES
