"""The bases of parsers that read a format's text from front to back."""

from collections.abc import Sequence
from typing import ClassVar

from server.parsers.base import CallFormat
from server.parsers.events import CallArguments, CallStart, Content, Event, Reasoning
from server.parsers.incoming_text import IncomingText, Waiting


class TextReader:
    """Runs `read`, which consumes `self.text` and adds events, whenever text arrives."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self.text = IncomingText()
        self._reading = self.read()
        next(self._reading)

    def read(self) -> Waiting[None]:
        """Consumes the whole text."""
        raise NotImplementedError

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        """The events that the next piece of text completes."""
        self.text.add(text)
        return self._go_on()

    def finish(self) -> list[Event]:
        """The events of the text that was held back."""
        self.text.is_complete = True
        return self._go_on()

    def _go_on(self) -> list[Event]:
        next(self._reading, None)
        events, self._events = self._events, []
        return events

    def add_event(self, event: Event) -> None:
        """Adds an event of its own."""
        self._events.append(event)

    def add_text(self, event: Reasoning | Content | CallArguments) -> None:
        """Joins what is adjacent and of one kind."""
        last = self._events[-1] if self._events else None
        if type(last) is type(event):
            self._events[-1] = type(event)(last.text + event.text)
        elif event.text:
            self._events.append(event)


class TextParser(TextReader):
    """A format implements `read`, which reads `self.text` and reports events to the other methods."""

    needs_special_tokens: ClassVar[bool] = True
    call_format: ClassVar[CallFormat | None] = None

    def __init__(self) -> None:
        self.num_calls = 0
        self._is_blank = True
        """Whether the content so far is white space."""
        self._blanks: list[str] = []
        """This white space, if no call has begun."""
        super().__init__()

    def finish(self) -> list[Event]:
        """The events of the text that was held back."""
        events = super().finish()
        return [*events, Content(blanks)] if (blanks := "".join(self._blanks)) else events

    def add_content(self, text: str) -> None:
        """Text for the user. White space alone is no content if there are calls."""
        if self._is_blank:
            text = text.lstrip() if self.num_calls else text
            self._is_blank = not text.strip()
            self._blanks.append(text)
            if self._is_blank:
                return
            text = "".join(self._blanks)
            self._blanks.clear()
        self.add_text(Content(text))

    def start_call(self, name: str) -> None:
        """A call begins."""
        self.num_calls += 1
        self._blanks.clear()
        self.add_event(CallStart(name))

    def add_arguments(self, text: str) -> None:
        """JSON text of the latest call."""
        self.add_text(CallArguments(text))


class StrayText:
    """Receives text where the format has only white space; other text becomes content."""

    def __init__(self, parser: TextParser) -> None:
        self._parser = parser
        self._is_blank = True

    def __call__(self, text: str) -> None:
        if self._is_blank:
            text = text.lstrip()
            self._is_blank = not text
        if text:
            self._parser.add_content(text)
