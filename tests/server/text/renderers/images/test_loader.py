"""Images from `data:` URLs and local files, and their decoding."""

import base64
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from server.text.renderers.images.fetcher import MediaError
from server.text.renderers.images.loader import decode_data_url, find_file, read_file
from server.text.renderers.images.processor import decode_image, import_decoders

_LARGE = 1 << 24


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 1000, 3 << 17, 1_000_003])
@pytest.mark.parametrize("header", ["data:;base64", "DATA:image/png;BASE64", "data:image/png;name=x;base64"])
def test_a_data_url_of_any_media_type_is_decoded_to_its_bytes(header, num_bytes):
    data = os.urandom(num_bytes)
    assert decode_data_url(f"{header},{base64.b64encode(data).decode()}", max_bytes=_LARGE) == data


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png,hello", "must be base64"),
        ("data:;base64,aGk", "not valid base64"),
        ("data:;base64,aGk=\n", "not valid base64"),
        ("data:;base64,a-_=", "not valid base64"),
        ("data:;base64,äääa", "not valid base64"),
        ("data:;base64," + "aGk=" + "A" * (1 << 19), "not valid base64"),
    ],
)
def test_a_malformed_data_url_is_rejected(url, message):
    with pytest.raises(MediaError, match=message):
        decode_data_url(url, max_bytes=_LARGE)


def test_more_bytes_than_allowed_are_rejected_before_decoding():
    with pytest.raises(MediaError, match="larger than 999 bytes"):
        decode_data_url("data:;base64," + "!" * 1400, max_bytes=999)
    assert len(decode_data_url("data:;base64," + "A" * 1332, max_bytes=999)) == 999


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The allowed folder, next to a secret file."""
    allowed = tmp_path / "media"
    (allowed / "sub").mkdir(parents=True)
    (allowed / "a b.png").write_bytes(b"image")
    (allowed / "sub" / "c.png").write_bytes(b"other")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "x.png").write_bytes(b"secret")
    return allowed.resolve()


def _read(url: str, folder: Path | None, max_bytes: int = 1000) -> bytes:
    return read_file(find_file(url, folder).path, max_bytes=max_bytes)


def test_files_below_the_folder_are_read(folder):
    (folder / "link.png").symlink_to(folder / "sub" / "c.png")
    assert _read(f"file://{folder}/a%20b.png", folder) == b"image"
    assert _read(f"file://localhost{folder}/sub/../sub/c.png", folder) == b"other"
    assert _read(f"file://{folder}/link.png", folder) == b"other"


@pytest.mark.parametrize(
    "path",
    [
        "{folder}/../secret.png",
        "{folder}/%2e%2e/secret.png",
        "{folder}/sub/../../secret.png",
        "{folder}2/x.png",
        "/etc/passwd",
        "{folder}/nothing.png",
        "{folder}",
        "{folder}/x%00.png",
        "",
        *(f"{{folder}}/{link}" for link in ("secret", "passwd", "above/secret.png", "cycle")),
    ],
)
def test_files_outside_the_folder_and_missing_files_get_the_same_error(folder, path):
    links = {"secret": folder.parent / "secret.png", "passwd": "/etc/passwd", "above": folder.parent, "cycle": "cycle"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    with pytest.raises(MediaError, match="no such file below"):
        _read("file://" + path.format(folder=folder), folder)


def test_what_is_no_file_or_not_allowed_is_rejected_with_the_reason(folder):
    os.mkfifo(folder / "pipe")
    for url, allowed, message in (
        (f"file://{folder}/a%20b.png", None, "--allowed-local-media-path"),
        (f"file://{folder}/sub", folder, "does not name a regular file"),
        (f"file://{folder}/pipe", folder, "does not name a regular file"),
        ("file://example.com/a.png", folder, "must name no host"),
    ):
        with pytest.raises(MediaError, match=message):
            _read(url, allowed)
    with pytest.raises(MediaError, match="larger than 4 bytes"):
        _read(f"file://{folder}/a%20b.png", folder, max_bytes=4)


_PIXELS = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _decoders() -> None:
    import_decoders()


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _decode(data: bytes, max_pixels: int = _PIXELS) -> Image.Image:
    return decode_image(data, max_pixels=max_pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_formats_become_rgb(kind):
    image = _decode(_encoded(Image.new("RGB", (30, 20), (200, 10, 30)), kind))
    assert (image.mode, image.size) == ("RGB", (30, 20))
    pixel = image.getpixel((5, 5))
    assert isinstance(pixel, tuple)
    assert all(abs(a - b) < 20 for a, b in zip(pixel, (200, 10, 30), strict=True))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert _decode(_encoded(Image.new(mode, (8, 8)), kind)).mode == "RGB"


def test_transparent_pixels_become_white():
    assert _decode(_encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert _decode(_encoded(palette, "PNG", transparency=0)).getpixel((1, 1)) == (255, 255, 255)


def test_an_image_is_rotated_by_its_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert _decode(_encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (20, 30)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert _decode(data).getpixel((0, 0)) == (255, 0, 0)


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
    data = _encoded(Image.effect_noise((64, 64), 50))
    with pytest.raises(MediaError, match="broken"):
        _decode(data[: len(data) // 2])


def test_an_image_of_the_largest_allowed_size_is_accepted_and_a_bomb_is_rejected_by_its_header():
    data = _encoded(Image.new("L", (100, 50)))
    assert _decode(data, max_pixels=5000).size == (100, 50)
    for rejected, max_pixels, message in (
        (data, 4999, "more than 4999"),
        (_png_header(9000, 9000), _PIXELS, "9000x9000 pixels, more than 1048576"),
        (_png_header(60_000, 60_000), 1 << 40, "too large"),  # by Pillow's own limit
    ):
        with pytest.raises(MediaError, match=message):
            _decode(rejected, max_pixels=max_pixels)


def _png_header(width: int, height: int) -> bytes:
    """The header of a PNG file with this size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    body = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + header + body
