"""`Gate`: a public socket offers one route, which hands out a private endpoint.

The public name of a service can be found by any process; what it offers there is as little as can
be. All real operations exist only on the endpoint, which requires having called `open` and having
been admitted.

What is handed out ends with the connection that asked for it, unless it was passed on: once another
process has spoken on an endpoint, it belongs to that process.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from container.ipc.actor import Actor
from container.ipc.context import current_call
from container.ipc.contract import Contract
from container.ipc.endpoint import Endpoint
from container.ipc.errors import Overloaded
from container.ipc.issuing import issue_from, route_names
from container.ipc.peer import Policy, same_user
from container.ipc.server import Server

C = TypeVar("C", bound=Contract)


class Gate(Actor, Generic[C]):
    """Hand out endpoints of a contract; combine it with the contract of the gate itself.

    ```python
    class RuntimeGate(Gate[Sandbox], SandboxGate): ...
    ```

    Args:
        contract: What is spoken on the endpoints.
        service: Who serves them; opened and closed by its owner.
        policy: Judges who holds an endpoint, at each message.
        unclaimed: How many endpoints may be out at once.
    """

    def __init__(
        self,
        contract: type[C],
        service: C,
        *,
        policy: Policy = same_user,
        unclaimed: int = 256,
    ) -> None:
        self._contract = contract
        self._service = service
        self._policy = policy
        self._bound = unclaimed

    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[C]:
        """Hand out a private endpoint, limited to `routes` (method names) if given.

        Raises:
            InvalidArgument: a name is no route of the contract.
            Overloaded: too many endpoints are out.
        """
        only = None if routes is None else route_names(self._contract, routes)
        if len(self.nursery.child_tasks) >= self._bound:
            raise Overloaded(f"{self._bound} endpoints of {self._contract.contract_name} are out")
        call = current_call()  # only a call can ask: the endpoint's end travels in its reply
        server = Server((self._service,), self._policy, only=only)

        def revoke() -> None:
            if issued.peer_pids() <= {call.peer.pid}:
                issued.scope.cancel()

        # The set belongs to the connection: one that lives long must not keep what has ended.
        issued = issue_from(
            self.nursery, self._contract, server, ended=lambda: call.at_end.discard(revoke)
        )
        call.at_end.add(revoke)
        return issued.endpoint
