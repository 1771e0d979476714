"""Every limit of a connection, named once. The first four are announced in hello."""

from __future__ import annotations

from attrs import frozen


@frozen
class Limits:
    """Bounds of one connection. A peer that breaks an announced one loses the connection."""

    frame_bytes: int = 16 * 1024 * 1024
    """Payload of one frame. Larger values are the caller's error, said before anything is sent."""
    frame_descriptors: int = 32
    """Descriptors of one frame; the kernel's own bound is 253."""
    in_flight: int = 4096
    """Unanswered calls of one peer, rejected and overstaying ones included."""
    channels: int = 64
    """Live channels of one call or scope that the peer made; 0 says that none are spoken."""
    hello_seconds: float = 10.0
    """From the first byte of an accepted connection to its whole hello."""
    launch_seconds: float = 60.0
    """How long a client waits for the answer to its hello: the service may have to be started."""
    grace_seconds: float = 5.0
    """How long a cancelled caller waits for its handler's end."""
    liveness_seconds: float = 30.0
    """After this long without a byte while calls are awaited the peer is unresponsive."""
    drain_seconds: float = 2.0
    """How long a closing connection tries to write what is queued."""
    partial_bytes: int = 64 * 1024 * 1024
    """Partly received frames of all connections of one process together."""
    partial_free_bytes: int = 65536
    """So much of a connection's partly received frame does not count towards that."""
    decode_inline_bytes: int = 1024 * 1024
    """Larger bodies are decoded in a worker thread, so that they don't stop the loop."""
    answer_bytes: int = 64 * 1024 * 1024
    """Answers that wait for one peer to read them; the connection of one that lets more pile up
    ends. A single answer may always wait."""
    connections_per_user: int = 1024
    """Open connections that one server accepts from one user. One more is told `overloaded`."""
    handlers: int = 16384
    """Calls and scopes that run in one server, of all its connections; one more is `overloaded`."""


LEAST = {"frame_bytes": 65536, "frame_descriptors": 0, "in_flight": 1, "channels": 0}
"""What holds of a peer that announces no such limit."""
