"""The beginning of a body is kept in memory within bounds, and passed on with the rest."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from startup.router.http.json_scanner import JsonScanner
from startup.router.http.request_body import MOST_SEARCHED_BYTES, BodyTooLongError, HeldBytes, RequestBody


class Content:
    """What aiohttp's reader offers, from a list of parts."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.num_read = 0

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        self.num_read += 1
        return self.parts.pop(0) if self.parts else b""

    def is_eof(self) -> bool:
        return not self.parts


def body_of(content: Content, held: HeldBytes) -> RequestBody:
    return RequestBody(content, held)  # type: ignore[arg-type]


async def whole(body: RequestBody) -> bytes:
    data: Any = body.data()
    if isinstance(data, AsyncIterator):
        return b"".join([part async for part in data])
    return data or b""


@pytest.mark.parametrize("seed", range(30))
async def test_every_byte_is_passed_on(seed: int) -> None:
    dice = random.Random(seed)
    size = dice.choice([0, 100, 300_000, 3 << 20])
    begin, end = (b'{"model":"m","x":"', b'"}') if dice.random() < 0.5 else (b'{"x":"', b'","model":"m"}')
    text = begin + b"x" * size + end
    borders = sorted({0, len(text), *(dice.randrange(len(text)) for _ in range(dice.randrange(40)))})
    content = Content([text[a:b] for a, b in zip(borders, borders[1:], strict=False)])
    held = HeldBytes(dice.choice([0, 1000, 1 << 30]))
    before = held._left
    body, scanner = body_of(content, held), JsonScanner()
    await body.find_model(scanner)
    assert scanner.model == "m"
    is_again = body.is_whole and dice.random() < 0.5
    assert await whole(body) == text
    if is_again:
        assert await whole(body) == text
    body.close()
    assert held._left == before


async def test_only_so_much_of_all_bodies_is_in_memory() -> None:
    held = HeldBytes(1_000_000)
    bodies = [body_of(Content([b'{"model":"m","x":"' + b"x" * 200_000, b'"}']), held) for _ in range(50)]
    for body in bodies:
        await body.find_model(JsonScanner())
    assert sum(body._num_held for body in bodies) <= 1_000_000
    assert {await whole(body) for body in bodies} == {b'{"model":"m","x":"' + b"x" * 200_000 + b'"}'}
    for body in bodies:
        body.close()
    assert held._left == 1_000_000


async def test_what_follows_an_early_model_is_not_read() -> None:
    content = Content([b'{"model":"m","x":"'] + [b"x" * 65536] * 1000)
    body = body_of(content, HeldBytes())
    await body.find_model(JsonScanner())
    assert content.num_read < 10
    body.close()


async def test_what_is_no_json_is_not_read_on() -> None:
    content = Content([b"<xml>"] + [b"x" * 65536] * 1000)
    body, scanner = body_of(content, HeldBytes()), JsonScanner()
    await body.find_model(scanner)
    assert (content.num_read, scanner.is_invalid) == (1, True)
    body.close()


@pytest.mark.thorough
async def test_the_search_ends() -> None:
    content = Content([b'{"x":"'] + [b"x" * (1 << 20)] * 100)
    body = body_of(content, HeldBytes())
    with pytest.raises(BodyTooLongError):
        await body.find_model(JsonScanner())
    assert content.num_read << 20 <= MOST_SEARCHED_BYTES + (2 << 20)
    body.close()
