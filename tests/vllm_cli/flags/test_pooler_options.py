"""`--runner`, `--convert` and `--pooler-config`, as in vLLM."""

import click
import pytest

from server.pooler_config import PoolerConfig


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
        (("--pooler-config", '{"logit_sigma": 0}'), "logit_sigma not 0"),
        (("--pooler-config", '{"step_tag_id": 3}'), "does not support step_tag_id"),
        (("--pooler-config", '{"max_embed_len": 0}'), "1 or more"),
        (("--pooler-config", '{"surprise": 1}'), "'surprise' is not one of its keys"),
    ],
)
def test_invalid_input_is_a_usage_error(parse, words, message):
    with pytest.raises(click.UsageError, match=message):
        parse("m", *words)
