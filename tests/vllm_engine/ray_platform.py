"""A platform plugin of vLLM: its CPU platform with a device name. Without this name, vLLM rejects Ray.

A Ray node that was started with `--num-gpus 1` then assigns one GPU. Ray only counts GPUs.
"""

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    """The CPU platform. Each GPU that Ray counts is a place for one worker."""

    ray_device_key = "GPU"


def find() -> str:
    """The plugin's entry point."""
    return "ray_platform.RayCpuPlatform"
