"""DNS for the names of containers: a Trio server that answers them and forwards the rest.

What it is *not*: a cache, a recursive resolver, or a zone server. It knows the names that it is
given, and asks other servers for the rest, afresh each time.
"""

from __future__ import annotations

from container.resolver.answers import Answers, Client
from container.resolver.limits import Limits
from container.resolver.listening import Listener, listen
from container.resolver.names import Entry, Found, Names
from container.resolver.server import DnsServer, Statistics
from container.resolver.upstreams import Upstreams

__all__ = [
    "Answers",
    "Client",
    "DnsServer",
    "Entry",
    "Found",
    "Limits",
    "Listener",
    "Names",
    "Statistics",
    "Upstreams",
    "listen",
]
