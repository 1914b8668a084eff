"""A stored run on a GPU switches what `--cuda-graphs auto` captures late, and nothing else does."""

import json
from types import SimpleNamespace

import pytest

from startup.vllm.patches.graphs import early_graphs, graph_proof
from startup.vllm.patches.graphs.early_graphs import UNPROVEN, why_runner
from startup.vllm.patches.graphs.graph_proof import BASE, STATES, GpuRun, read_proof, write_proof
from tests.cuda.test_late_graphs_on_gpus import FEATURES


def runs(*features: str, **changes: str) -> list[GpuRun]:
    run = GpuRun("", "", "FLASH_ATTN", "9.0", "0.33.0")
    return [run._replace(feature=feature, state=state, **changes) for feature in features for state in STATES]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    monkeypatch.setattr(graph_proof, "RESULT", path)
    return path


@pytest.mark.parametrize(
    ("shown", "is_shown"),
    [
        (runs(BASE), True),
        ([], False),
        (runs(BASE)[:1], False),
        (runs(BASE, backend="TRITON_ATTN"), False),
        (runs(BASE, backend=""), False),
        (runs(BASE, capability="10.0"), False),
        (runs(BASE, vllm="0.33.1"), False),
        (runs("Triton"), False),
    ],
    ids=["both states", "none", "cold only", "other backend", "no backend", "other GPU", "other vLLM", "no default"],
)
def test_only_cold_and_warm_runs_with_flash_attention_on_such_a_gpu_count(shown, is_shown, stored):
    write_proof(shown, {}, stored)
    assert read_proof("9.0", "0.33.0+cu130").shows(BASE) == is_shown


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"code": 1, "runs": 2}', "[" * 9000])
def test_a_missing_or_damaged_file_shows_nothing(content, stored):
    if content is not None:
        stored.write_text(content)
    assert not read_proof("9.0", "0.33.0").shows(BASE)


def test_a_run_of_other_code_shows_nothing(stored):
    write_proof(runs(BASE), {}, stored)
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"code": "other"}))
    assert not read_proof("9.0", "0.33.0").shows(BASE)


@pytest.fixture
def runner(monkeypatch):
    """A model runner to which no exclusion but those of `UNPROVEN` can apply."""
    monkeypatch.setattr(early_graphs, "why_config", lambda _: None)
    monkeypatch.setattr(early_graphs, "OF_RUNNER", ())
    monkeypatch.setattr(early_graphs, "find_vllm", lambda: SimpleNamespace(version="0.33.0"))
    platform = SimpleNamespace(get_device_capability=lambda: (9, 0))
    monkeypatch.setattr(early_graphs, "PLATFORM", SimpleNamespace(get=lambda: platform))
    monkeypatch.setattr(early_graphs, "ENVS", SimpleNamespace(loaded=SimpleNamespace(VLLM_BATCH_INVARIANT=False)))
    backend = SimpleNamespace(get_name=lambda: "FLASH_ATTN")
    model = SimpleNamespace(is_moe=False, quantization=None, dtype="torch.bfloat16", enable_sleep_mode=False)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(world_size=1),
        model_config=model,
        cache_config=SimpleNamespace(cache_dtype="auto"),
    )
    return SimpleNamespace(
        vllm_config=config, attn_groups=[[SimpleNamespace(backend=backend)]], cudagraph_manager=object()
    )


def test_a_run_switches_the_default(runner, stored, monkeypatch):
    assert why_runner(runner) == "no run of this code on such a GPU is stored"
    write_proof(runs(BASE), {}, stored)
    assert why_runner(runner) is None
    runner.vllm_config.model_config.enable_sleep_mode = True
    assert why_runner(runner) == "sleep mode"
    write_proof(runs(BASE, "sleep in the middle"), {}, stored)
    assert why_runner(runner) is None
    stored.unlink()
    monkeypatch.setenv("VCLI_CUDA_GRAPHS", "after-ready")
    assert why_runner(runner) is None, "asked for"


def test_the_stored_result_is_of_the_present_code_or_missing():
    """If it is of other code, `auto` captures before readiness: run `make test-gpu`, or remove the file."""
    if graph_proof.RESULT.exists():
        assert json.loads(graph_proof.RESULT.read_text())["code"] == graph_proof.code_digest()


def test_each_feature_has_its_own_run_on_a_gpu():
    assert sorted(feature.run for feature in UNPROVEN) == sorted([*FEATURES, "several ranks", "a mixture of experts"])
