"""Makes images that cost a server what a photo does: no two alike, and none that a compressor makes small."""

import random
from io import BytesIO

from PIL import Image

_NUM_PATCHES = 8
"""Areas of light and colour across the image."""
_GRAIN_PX = 4
_GRAIN_SHARE = 0.2


def draw_photo(width_px: int, *, seed: str) -> bytes:
    """A square JPEG; the same seed gives the same image."""
    source = random.Random(seed)

    def draw_noise(num_cells: int) -> Image.Image:
        cells = Image.frombytes("RGB", (num_cells, num_cells), source.randbytes(3 * num_cells**2))
        return cells.resize((width_px, width_px), Image.Resampling.BICUBIC)

    image = Image.blend(draw_noise(_NUM_PATCHES), draw_noise(max(1, width_px // _GRAIN_PX)), _GRAIN_SHARE)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
