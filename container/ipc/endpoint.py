"""`Endpoint[Contract]`: one end of a fresh socket pair and the contract spoken on it.

A capability: who holds it may call, sending it gives it away, and it can be passed on through third
processes. The issuer may limit it to a subset of routes and revoke it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from container.ipc.contract import Contract
from container.ipc.descriptor import Fd

C = TypeVar("C", bound=Contract)


class Endpoint(Generic[C]):
    """A connected, not yet used end of a socket pair, `contract` served at the other.

    Args:
        contract: The contract spoken on it.
        fd: The socket; the endpoint owns it.
    """

    def __init__(self, contract: type[C], fd: Fd) -> None:
        self.contract = contract
        self.fd = fd

    def connect(self) -> AbstractAsyncContextManager[C]:
        """Speak on it: the block holds a proxy. An endpoint is connected once.

        Raises:
            PeerGone: the issuer revoked it or is gone.
        """
        from container.ipc.client import connect_contract

        return connect_contract(self.contract, self)

    def close(self) -> None:
        """Drop it; the issuer's side ends."""
        self.fd.close()

    def __repr__(self) -> str:
        return f"<Endpoint {self.contract.contract_name} {self.fd!r}>"
