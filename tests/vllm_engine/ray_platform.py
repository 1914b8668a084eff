"""A platform plugin of vLLM's: its CPU platform, which refuses Ray for want of a device's name, with such a name.

A Ray node that is started with `--num-gpus 1` then hands out one; nothing but the counting is done with it.
"""

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    """What Ray counts as a GPU is a place for one worker."""

    ray_device_key = "GPU"


def find() -> str:
    """The plugin's entry point."""
    return "ray_platform.RayCpuPlatform"
