"""The facts that compiled code depends on are read from the kernel's files."""

import platform
from pathlib import Path

import pytest

from base.machine.hardware import cpu_features, gpu_kinds


def _features(folder: Path, text: str) -> str:
    (folder / "cpuinfo").write_text(text)
    return cpu_features(folder)


def test_the_order_of_features_and_the_number_of_processors_do_not_matter(tmp_path):
    one = _features(tmp_path, "processor\t: 0\nflags\t\t: avx2 fma\n\n")
    assert _features(tmp_path, "processor\t: 0\nflags\t\t: fma avx2\n\nprocessor\t: 1\nflags\t\t: fma avx2\n") == one
    assert one.startswith(platform.machine())


def test_another_instruction_set_differs(tmp_path):
    assert _features(tmp_path, "flags : avx2\n") != _features(tmp_path, "flags : avx2 avx512f\n")
    assert _features(tmp_path, "Features : asimd\n") != _features(tmp_path, "Features : asimd sve\n")


@pytest.mark.parametrize("text", ["", "processor : 0\n"])
def test_without_features_the_architecture_counts(text, tmp_path):
    assert _features(tmp_path, text) == platform.machine()


def test_each_kind_of_gpu_is_named_once(tmp_path):
    for name, model in (("0000:01:00.0", "NVIDIA H100 80GB HBM3"), ("0000:02:00.0", "NVIDIA H100 80GB HBM3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 11\n")
    assert gpu_kinds(tmp_path) == ("NVIDIA H100 80GB HBM3",)
    assert gpu_kinds(tmp_path / "none") == ()
