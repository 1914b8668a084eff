"""Decoding images: formats, colours, decompression bombs, and files that are not images."""

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from server.renderers.images.fetcher import MediaError
from server.renderers.images.processor import decode_image, import_decoders

_PIXELS = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _decoders() -> None:
    import_decoders()


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _decode(data: bytes, max_pixels: int = _PIXELS) -> Image.Image:
    return decode_image(data, max_pixels=max_pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_formats_become_rgb(kind):
    image = _decode(_file(Image.new("RGB", (30, 20), (200, 10, 30)), kind))
    assert (image.mode, image.size) == ("RGB", (30, 20))
    pixel = image.getpixel((5, 5))
    assert isinstance(pixel, tuple)
    assert all(abs(a - b) < 20 for a, b in zip(pixel, (200, 10, 30), strict=True))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert _decode(_file(Image.new(mode, (8, 8)), kind)).mode == "RGB"


def test_transparent_pixels_become_white():
    assert _decode(_file(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert _decode(_file(palette, "PNG", transparency=0)).getpixel((1, 1)) == (255, 255, 255)


def test_an_image_is_rotated_by_its_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert _decode(_file(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (20, 30)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = _file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert _decode(data).getpixel((0, 0)) == (255, 0, 0)


def test_the_first_of_several_images_in_a_jpeg_file_is_used():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    assert _decode(_file(frames[0], "MPO", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_files_that_are_not_images_are_rejected(data):
    with pytest.raises(MediaError, match="not an image in a known format"):
        _decode(data)


def test_a_truncated_image_is_rejected():
    data = _file(Image.effect_noise((64, 64), 50))
    with pytest.raises(MediaError, match="broken"):
        _decode(data[: len(data) // 2])


def test_a_decompression_bomb_is_rejected_by_its_header():
    with pytest.raises(MediaError, match="9000x9000 pixels, more than 1048576"):
        _decode(_png_header(9000, 9000))


def test_a_bomb_by_pillows_own_limit_is_rejected_with_any_limit():
    with pytest.raises(MediaError, match="too large"):
        _decode(_png_header(60_000, 60_000), max_pixels=1 << 40)


def test_an_image_of_the_largest_allowed_size_is_accepted():
    data = _file(Image.new("L", (100, 50)))
    assert _decode(data, max_pixels=5000).size == (100, 50)
    with pytest.raises(MediaError, match="more than 4999"):
        _decode(data, max_pixels=4999)


def _png_header(width: int, height: int) -> bytes:
    """A header with this size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    body = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + header + body
