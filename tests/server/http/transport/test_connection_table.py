"""If a new connection exceeds the limit, the right connection is evicted."""

import pytest

from server.http.transport.connection_table import ConnectionTable


class Client:
    """A fake connection. With `is_sending`, it cannot be evicted."""

    def __init__(self, *, is_sending: bool = False) -> None:
        self.is_sending = is_sending
        self.is_evicted = False

    def evict(self) -> bool:
        self.is_evicted = not self.is_sending
        return self.is_evicted


def test_a_handshake_that_becomes_a_connection_evicts_no_second_one():
    """No second connection is evicted, even if the first evicted connection is not closed yet."""
    table = ConnectionTable(3)
    clients, handshake = [Client() for _ in range(3)], Client()
    assert all(map(table.add, [*clients, handshake]))
    table.discard(handshake)
    assert table.add(Client())
    assert [client.is_evicted for client in clients] == [True, False, False]


@pytest.mark.parametrize("num_sending", [2, 200])
def test_connections_with_unsent_bytes_are_not_evicted(num_sending):
    """There may be many such connections. Each new connection checks only a few of them."""
    table = ConnectionTable(num_sending + 1)
    sending, idle = [Client(is_sending=True) for _ in range(num_sending)], Client()
    assert all(map(table.add, [*sending, idle]))
    new_clients = [Client(is_sending=True) for _ in range(num_sending)]
    assert any(map(table.add, new_clients))
    assert idle.is_evicted
    assert not any(client.is_evicted for client in sending + new_clients)


def test_a_closed_connection_does_not_become_idle_again():
    """A connection's last response may complete after the connection has closed."""
    table = ConnectionTable(1)
    gone, busy = Client(), Client()
    table.add(gone)
    table.note_busy(gone)
    table.discard(gone)
    table.note_idle(gone)
    table.add(busy)
    table.note_busy(busy)
    assert not table.add(Client())
    assert not gone.is_evicted
