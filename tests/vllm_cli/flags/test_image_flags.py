"""Flags and variables for images in the renderer's configuration."""

import pytest

from base.errors import ConfigError
from server.config import RendererConfig


def test_variables_reach_the_renderer(parse, monkeypatch):
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
def test_limits_have_two_spellings(limit, most):
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
def test_invalid_settings_are_errors_that_name_the_flag(setting, option):
    with pytest.raises(ConfigError, match=option):
        RendererConfig(**setting)
