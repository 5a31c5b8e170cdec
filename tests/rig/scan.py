"""Which TCP ports of an address accept a connection: python scan.py ADDRESS. Prints them, one a line."""

from __future__ import annotations

import select
import socket
import sys
import time

AT_ONCE = 2000
SECONDS = 1.0  # a machine on the same wire answers in milliseconds, or its firewall never does


def accepting(address: str, ports: range) -> list[int]:
    """Returns those of the ports that accept a connection."""
    begun = {}
    for port in ports:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex((address, port))
        begun[connection.fileno()] = (port, connection)
    time.sleep(SECONDS)
    poll = select.poll()
    for number in begun:
        poll.register(number, select.POLLOUT)
    ended = [number for number, _ in poll.poll(0)]
    answered = [begun[number] for number in ended]
    result = [port for port, socket_ in answered if socket_.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0]
    for _, connection in begun.values():
        connection.close()
    return sorted(result)


for first in range(1, 65536, AT_ONCE):
    for port in accepting(sys.argv[1], range(first, min(first + AT_ONCE, 65536))):
        print(port)
