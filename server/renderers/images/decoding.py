"""Decodes an untrusted image file into RGB pixels."""

import importlib
from io import BytesIO
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from server.renderers.images.errors import MediaError

_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Accepted formats, all decoded in this process; for others, such as EPS, Pillow runs external programs."""
_PLUGINS: Final = ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")
"""Pillow's modules for these formats; JPEG files with several images are MPO."""

_WHITE = (255, 255, 255)


def import_decoders() -> None:
    """Imports every decoder, so that no thread imports one for its first image.

    Call it on the main thread.
    """
    for plugin in _PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    Image.preinit()


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame in RGB, rotated upright, with transparent pixels white.

    The size in the header is checked before any pixel is decoded.

    Raises:
        MediaError: the file is not an image, is broken, or has more than `max_pixels`.
    """
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
        width, height = image.size
        if width * height > max_pixels:
            raise MediaError(
                f"the image has {width}x{height} pixels, more than {max_pixels} in all (VLLM_MAX_IMAGE_PIXELS)"
            )
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise MediaError(f"the image is too large: {err}") from err
    except UnidentifiedImageError as err:
        raise MediaError(f"not an image in a known format ({', '.join(_FORMATS)})") from err
    except Exception as err:  # decoders raise any kind of error for a broken file
        raise MediaError(f"the image is broken: {str(err)[:200] or type(err).__name__}") from err


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    background = Image.new("RGB", layer.size, _WHITE)
    background.paste(layer, mask=layer.getchannel("A"))
    return background
