"""Creates JPEGs as expensive to decode as photographs: no two are equal, and noise keeps them large."""

import random
from io import BytesIO

from PIL import Image

_NUM_PATCHES = 8
"""Coloured areas along each side of the image."""
_GRAIN_PX = 4
_GRAIN_SHARE = 0.2


def create_jpeg(width_px: int, *, seed: str) -> bytes:
    """A square JPEG; the same seed gives the same image."""
    source = random.Random(seed)

    def create_noise(num_cells: int) -> Image.Image:
        cells = Image.frombytes("RGB", (num_cells, num_cells), source.randbytes(3 * num_cells**2))
        return cells.resize((width_px, width_px), Image.Resampling.BICUBIC)

    image = Image.blend(create_noise(_NUM_PATCHES), create_noise(max(1, width_px // _GRAIN_PX)), _GRAIN_SHARE)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
