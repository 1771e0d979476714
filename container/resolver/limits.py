"""How much the DNS server takes on at once."""

from __future__ import annotations

from attrs import frozen


@frozen
class Limits:
    """Bounds, each of which keeps one client from using up what all need."""

    forwarded: int = 256
    """Queries at others in all: each has a socket and a task."""
    forwarded_per_client: int = 64
    waiting_per_client: int = 512
    """Queries that wait until one of the client's is answered; more are refused at once."""
    connections: int = 128
    """Of TCP, in all."""
    connections_per_client: int = 16
    idle: float = 10.0
    """Seconds that a TCP connection may take for its next query, or for taking an answer."""
    query_bytes: int = 4096
    """Of one query; a longer one is malformed."""
    udp_bytes: int = 1232
    """Of one answer over UDP to whoever takes more: what no path fragments.
    Source: DNS Flag Day 2020."""
    patience: float = 5.0
    """Seconds after which a client has given up on a query that waited: it is dropped."""
