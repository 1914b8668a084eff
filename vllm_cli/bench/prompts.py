"""Reproducible prompts that differ from their first word on, so that no prefix cache helps."""

import random

_TASKS = (
    "Write a short story about",
    "Explain to a child the meaning of",
    "List the most important facts about",
    "Give a friend some good advice about",
    "Describe in plain words the history of",
    "Compare the past and the future of",
    "Write a letter to the city about",
    "Tell me what people think about",
)
_NOUNS = (
    "river house morning market winter garden music teacher window ocean road letter kitchen mountain paper engine "
    "light family doctor science village history summer animal bridge water school book colour story table night "
    "language forest number island picture train money weather question office friend ship farmer country king star"
)
_VERBS = "finds keeps loves shows builds takes sees opens follows leaves brings meets"
_NUM_DIGITS = 6


def build_prompt(num_tokens: int, *, seed: str) -> str:
    """A prompt of about `num_tokens` tokens, determined by the seed.

    Uses no tokenizer: most vocabularies hold the words as one token each, and the digits of the number at the
    front count one token each.
    """
    source = random.Random(seed)
    nouns, verbs = _NOUNS.split(), _VERBS.split()
    number = f"{source.randrange(10**_NUM_DIGITS):0{_NUM_DIGITS}}:"
    words = [*source.choice(_TASKS).split(), source.choice(nouns), "."]
    num_words = max(1, num_tokens - _NUM_DIGITS - 1)
    while len(words) < num_words:
        words += ["The", source.choice(nouns), source.choice(verbs), "the", source.choice(nouns), "."]
    return " ".join([number, *words[:num_words]]).replace(" .", ".")
