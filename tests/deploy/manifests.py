"""Renders the manifests of deploy/kubernetes with `kubectl kustomize`, in a user's own kustomization."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.marks import require_tool

KUBERNETES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
COMPONENTS: Final = {path.name for path in (KUBERNETES / "components").iterdir()}
_OF_EVERY_FLEET: Final = ("alerts", "disruption-budget", "network-policy", "pod-monitor")
VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "embedded": ("embedded",),
    "embedded-models": ("embedded", "cache", "many-models", *_OF_EVERY_FLEET),
    "embedded-baked": ("embedded", "baked-image"),
    "embedded-kserve": ("embedded", "kserve"),
    "vllm": ("vllm",),
    "vllm-claim": ("vllm", "cache", *_OF_EVERY_FLEET),
    "vllm-compiled": ("vllm", "compile-cache"),
    "vllm-baked": ("vllm", "baked-image"),
    "vllm-canary": ("vllm", "canary"),
    "vllm-two-nodes": ("vllm", "two-nodes", *_OF_EVERY_FLEET),
    "vllm-kserve": ("vllm", "kserve"),
}
"""Name of a variant -> its base and components. Each component is in at least one variant."""
POD_NAMES: Final = [
    f"{variant} {role}".strip()
    for variant, names in VARIANTS.items()
    for role in (("leader", "worker") if "two-nodes" in names else ("",))
]
"""The name of each pod: its variant, and its role if the variant has several."""
_OLDEST_KUSTOMIZE: Final = 5

Document = dict[str, Any]


@cache
def render(variant: str) -> dict[str, Document]:
    """Kind -> document of a variant. All callers get the same objects."""
    base, *components = VARIANTS[variant]
    return render_kustomization(resources=[base], components=[f"components/{name}" for name in components])


def render_kustomization(resources: list[str], components: list[str], **fields: Any) -> dict[str, Document]:
    """Kind -> document of a user's kustomization. Folders are relative to deploy/kubernetes."""
    with tempfile.TemporaryDirectory() as folder:
        place = os.path.relpath(KUBERNETES, Path(folder).resolve())
        own = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{place}/{name}" for name in resources],
            "components": [f"{place}/{name}" for name in components],
            **fields,
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(own))
        documents = list(yaml.safe_load_all(_kustomize(folder)))
    assert len({one["kind"] for one in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def pods_of(variant: str) -> Iterator[tuple[str, Document]]:
    """Yields name and template of each pod of a variant."""
    for kind, document in render(variant).items():
        spec = document["spec"] if kind in ("Deployment", "LeaderWorkerSet", "ServingRuntime") else {}
        if kind == "Deployment":
            yield variant, spec["template"]
        elif kind == "LeaderWorkerSet":
            for role in ("leader", "worker"):
                yield f"{variant} {role}", spec["leaderWorkerTemplate"][f"{role}Template"]
        elif kind == "ServingRuntime":
            yield variant, {"spec": {name: spec[name] for name in ("containers", "volumes")}}


def pod_of(name: str) -> Document:
    """The template of the pod with this name of POD_NAMES."""
    return dict(pods_of(name.partition(" ")[0]))[name]


@cache
def _renders_components() -> bool:
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=200)
    version = json.loads(done.stdout or "{}").get("kustomizeVersion", "v0")
    return int(version.removeprefix("v").partition(".")[0]) >= _OLDEST_KUSTOMIZE


def _kustomize(folder: str) -> str:
    require_tool("kubectl")
    if not _renders_components():
        pytest.skip(f"needs kubectl with kustomize {_OLDEST_KUSTOMIZE} or newer: Debian 13's kubernetes-client")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # deprecated fields are warned of
    return done.stdout
