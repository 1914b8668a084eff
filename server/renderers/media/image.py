"""Decodes an image's bytes into RGB pixels; nothing of the file is trusted."""

import importlib
from io import BytesIO
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from server.renderers.media.errors import MediaError

_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is decoded, all of it in this process: Pillow hands some other formats, such as EPS, to foreign programs."""
_PLUGINS: Final = ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")
"""Pillow's modules for them; JPEG files with several images are MPO."""

_WHITE = (255, 255, 255)


def import_decoders() -> None:
    """Loads every decoder, so that no thread imports one with its first image; for the main thread."""
    for plugin in _PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    Image.preinit()


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame, upright, in RGB; what is transparent becomes white.

    The size is read from the header and checked before a pixel is decoded.

    Raises:
        MediaError: it is no image, a broken one, or one of more than `max_pixels`.
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
    except Exception as err:  # decoders of foreign files raise whatever they like
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
