"""A platform plugin of vLLM: its CPU platform with a device name, without which it rejects Ray.

A Ray node started with `--num-gpus 1` then assigns one GPU, which Ray only counts.
"""

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    """The CPU platform; each GPU that Ray counts is a place for one worker."""

    ray_device_key = "GPU"


def find() -> str:
    """The plugin's entry point."""
    return "ray_platform.RayCpuPlatform"
