"""Flags and variables for images in the renderer's configuration."""

from pathlib import Path
from typing import Any

import pytest

from server.config import RendererConfig
from server.errors import ConfigError


def test_without_flags_no_image_is_fetched_or_read(parse) -> None:
    renderer = parse("m").renderer
    assert (renderer.allowed_media_domains, renderer.allowed_local_media_path) == ((), None)
    assert (renderer.max_images, renderer.mm_processor_cache_gb, renderer.trust_request_mm_kwargs) == (999, 4.0, False)
    assert (renderer.image_fetch_timeout_s, renderer.media_url_allow_redirects) == (5, True)


def test_every_flag_reaches_the_renderer(parse, tmp_path: Path) -> None:
    renderer = parse(
        *("m", "--limit-mm-per-prompt", '{"image": 4}', "--allowed-media-domains", "a.example", "10.0.0.1"),
        *("--allowed-local-media-path", str(tmp_path), "--mm-processor-cache-gb", "0.5"),
        *("--mm-processor-kwargs", '{"do_resize": false}', "--trust-request-mm-kwargs"),
    ).renderer
    assert renderer.max_images == 4
    assert renderer.allowed_media_domains == ("a.example", "10.0.0.1")
    assert renderer.allowed_local_media_path == str(tmp_path)
    assert renderer.mm_processor_cache_gb == 0.5
    assert (renderer.mm_processor_kwargs, renderer.trust_request_mm_kwargs) == ({"do_resize": False}, True)


def test_variables_reach_the_renderer(parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "9")
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "2")
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    renderer = parse("m").renderer
    assert (renderer.image_fetch_timeout_s, renderer.media_url_allow_redirects) == (9, False)
    assert (renderer.max_media_bytes, renderer.max_image_pixels) == (2 << 20, 1000)


@pytest.mark.parametrize(
    ("limit", "most"), [({}, 999), ({"image": 0}, 0), ({"image": {"count": 3, "width": 9}}, 3), ({"video": 1}, 999)]
)
def test_limits_have_two_spellings(limit: dict[str, Any], most: int) -> None:
    assert RendererConfig(limit_mm_per_prompt=limit).max_images == most


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ({"limit_mm_per_prompt": {"image": -1}}, "--limit-mm-per-prompt"),
        ({"limit_mm_per_prompt": {"image": "many"}}, "--limit-mm-per-prompt"),
        ({"limit_mm_per_prompt": {"image": {"count": True}}}, "--limit-mm-per-prompt"),
        ({"mm_processor_cache_gb": -0.1}, "--mm-processor-cache-gb"),
        ({"allowed_local_media_path": "/does/not/exist"}, "--allowed-local-media-path"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_flag(setting: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        RendererConfig(**setting)
