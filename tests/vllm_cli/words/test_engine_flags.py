"""Flags for pooling and images work as in vLLM."""

import click
import pytest

from base.errors import ConfigError
from server.terms.config import PoolerConfig, RendererConfig


def test_without_flags_the_files_of_the_model_decide(parse):
    engine = parse("m").engine
    assert (engine.runner, engine.convert, engine.pooler) == ("auto", "auto", PoolerConfig())


def test_pooler_config_is_json_or_written_key_by_key(parse):
    whole = parse("m", "--pooler-config", '{"pooling_type": "MEAN", "use_activation": false}').engine.pooler
    keyed = parse("m", "--pooler-config.pooling_type", "MEAN", "--pooler-config.use_activation=false").engine.pooler
    assert whole == keyed == PoolerConfig(pooling_type="MEAN", use_activation=False)
    assert whole.sequence_type == "MEAN"


def test_keys_with_neutral_values_are_accepted(parse):
    words = '{"enable_chunked_processing": false, "max_embed_len": null, "enable_flash_late_interaction": true}'
    assert parse("m", "--pooler-config", words).engine.pooler == PoolerConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--runner", "draft"), "'draft' is not one of"),
        (("--convert", "reward"), "'reward' is not one of"),
        (("--pooler-config", "MEAN"), "not JSON"),
        (("--pooler-config", '{"pooling_type": "MAX"}'), "one of CLS, LAST, MEAN, ALL"),
        (("--pooler-config", '{"pooling_type": "CLS", "seq_pooling_type": "CLS"}'), "left out where"),
        (("--pooler-config", '{"task": "score"}'), "one of embed, classify"),
        (("--pooler-config", '{"normalize": true}'), "use `use_activation` instead"),
        (("--pooler-config", '{"dimensions": 0}'), "1 or more"),
        (("--pooler-config", '{"logit_sigma": 2.0}'), "does not support logit_sigma"),
        (("--pooler-config", '{"step_tag_id": 3}'), "does not support step_tag_id"),
        (("--pooler-config", '{"enable_chunked_processing": true, "max_embed_len": 900}'), "--engine vllm"),
        (("--pooler-config", '{"surprise": 1}'), "'surprise' is not one of its keys"),
    ],
)
def test_invalid_input_is_a_usage_error(parse, words, message):
    with pytest.raises(click.UsageError, match=message):
        parse("m", *words)


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
