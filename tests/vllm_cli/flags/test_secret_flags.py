"""Secret flags are found in every spelling, also among words that only vLLM accepts."""

from envs.redaction import hide_in_words
from vllm_cli.flags.secret_flags import secret_notices, secrets_as_variables


def test_a_secret_becomes_a_variable_of_the_child():
    words = ["m", "--hf_tok=sesame", "--api-key", "sesame2", "--no-such-flag", "x", "--", "--hf-token", "y"]
    assert secrets_as_variables(words) == (
        ["m", "--no-such-flag", "x", "--", "--hf-token", "y"],
        {"HF_TOKEN": "sesame", "VLLM_API_KEY": "sesame2"},
    )


def test_a_secret_that_no_variable_can_hold_stays():
    words = ["m", "--api-key", "a", "b", "--hf-token", "--port", "1"]
    assert secrets_as_variables(words) == (words, {})


def test_each_secret_flag_gets_one_notice():
    words = ["m", "--api-key", "a", "b", "--hf-token=c", "--port", "1"]
    both = list(secret_notices(words, has_key_file=True))
    assert [notice.partition(" ")[0] for notice in both] == ["--api-key", "--hf-token"]
    assert both[0].endswith("prefer VLLM_API_KEY or --api-key-file.")
    assert next(secret_notices(words, has_key_file=False)).endswith("prefer VLLM_API_KEY.")
    assert list(secret_notices(hide_in_words(["m", "--hf-token"]), has_key_file=True)) == []
