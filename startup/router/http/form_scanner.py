"""Finds the requested model in a multipart form."""

from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from startup.router.http.model_scanner import LONGEST_NAME, ModelScanner

_MOST_HEADER_BYTES: Final = 16 << 10


class MultipartScanner(ModelScanner):
    """Reads the fields `model` and `stream` of a form, before and after its files."""

    def __init__(self, boundary: bytes) -> None:
        super().__init__()
        self._header_name = b""
        self._header_value = b""
        self._num_header_bytes = 0
        self._field = ""
        """The current field, if it is one of those that are looked for."""
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_header_name,
                "on_header_value": self._add_header_value,
                "on_header_end": self._end_header,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Reads the next part of the body; whatever is wrong with it, no error is raised."""
        if self.is_complete:
            return
        try:
            self._parser.write(data)
        except FormParserError:
            self._fail()

    def _begin_part(self) -> None:
        self._field, self._num_header_bytes = "", 0
        self._header_name = self._header_value = b""
        self._value.clear()

    def _add_header_name(self, data: bytes, begin: int, end: int) -> None:
        self._count_header(end - begin)
        self._header_name += data[begin:end]

    def _add_header_value(self, data: bytes, begin: int, end: int) -> None:
        self._count_header(end - begin)
        self._header_value += data[begin:end]

    def _count_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > _MOST_HEADER_BYTES:
            raise FormParserError(f"headers of a part are longer than {_MOST_HEADER_BYTES} bytes")

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            name = options.get(b"name", b"")
            self._field = name.decode() if name in (b"model", b"stream") and b"filename" not in options else ""
        self._header_name = self._header_value = b""

    def _add_data(self, data: bytes, begin: int, end: int) -> None:
        if self._field:
            self._value += data[begin : min(end, begin + LONGEST_NAME - len(self._value))]

    def _end_part(self) -> None:
        text = self._value.decode("utf-8", "replace")
        if self._field == "model":
            self.set_model(text)
        elif self._field == "stream":
            self.is_stream = text.strip().lower() in ("true", "1", "on", "yes")

    def _end(self) -> None:
        self.is_complete = True

    def _fail(self) -> None:
        self.set_model(None)
        self.is_complete = self.is_invalid = True
