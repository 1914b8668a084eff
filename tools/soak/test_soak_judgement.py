import pytest

from tools.soak.judgement import judge_answer

CHUNK = b'data: {"choices": [{"text": "a"}]}\n\n'
QUOTED = b'data: {"choices": [{"text": "\\"error\\": {}"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def error(code: object) -> bytes:
    return b'data: {"error": {"message": "no", "code": %s}}\n\n' % str(code).encode()


@pytest.mark.parametrize(
    ("status", "content", "ending"),
    [
        (200, b"{}", "answered"),
        (204, b"", "answered"),
        (400, b"{}", "refused"),
        (404, b"not JSON", "refused"),
        (429, b"", "shed"),
        (503, b"", "shed"),
        (504, b"", "shed"),
        (500, b"{}", "failed"),
        (502, b"", "failed"),
    ],
)
def test_a_plain_answer_is_judged_by_its_status(status, content, ending):
    assert judge_answer(status, content, is_stream=False).ending == ending


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (CHUNK + DONE, "answered"),
        (CHUNK + QUOTED + DONE, "answered"),
        (CHUNK + b": comment\n\n" + DONE, "answered"),
        (CHUNK + error(500) + DONE, "failed"),
        (CHUNK + error(500), "failed"),
        (CHUNK + error('"internal"') + DONE, "failed"),
        (CHUNK + error(504) + DONE, "shed"),
        (CHUNK, "lost"),
        (CHUNK + DONE[:-6], "lost"),
        (b"", "lost"),
    ],
)
def test_a_stream_is_judged_by_its_events(content, ending):
    assert judge_answer(200, content, is_stream=True).ending == ending


def test_the_message_quotes_the_response():
    assert "no luck" in judge_answer(500, b'{"error": "no luck"}', is_stream=False).message
    assert '"text": "a"' in judge_answer(200, CHUNK, is_stream=True).message
