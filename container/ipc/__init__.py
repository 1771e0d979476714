"""Structured concurrency across process boundaries: typed contracts over Unix sockets, on Trio."""

from __future__ import annotations

from container.ipc.actor import Actor as Actor
from container.ipc.actor import ActorStatistics as ActorStatistics
from container.ipc.contract import Contract as Contract
from container.ipc.contract import ContractError as ContractError
from container.ipc.descriptor import Fd as Fd
from container.ipc.endpoint import Endpoint as Endpoint
from container.ipc.errors import AlreadyExists as AlreadyExists
from container.ipc.errors import CallCancelled as CallCancelled
from container.ipc.errors import ContainerError as ContainerError
from container.ipc.errors import DataLoss as DataLoss
from container.ipc.errors import DeadlineExceeded as DeadlineExceeded
from container.ipc.errors import ErrorCode as ErrorCode
from container.ipc.errors import Fate as Fate
from container.ipc.errors import Hop as Hop
from container.ipc.errors import Incompatible as Incompatible
from container.ipc.errors import InternalError as InternalError
from container.ipc.errors import InvalidArgument as InvalidArgument
from container.ipc.errors import InvalidState as InvalidState
from container.ipc.errors import NotFound as NotFound
from container.ipc.errors import Overloaded as Overloaded
from container.ipc.errors import PeerGone as PeerGone
from container.ipc.errors import PermissionDenied as PermissionDenied
from container.ipc.errors import Unavailable as Unavailable
from container.ipc.errors import UnknownRoute as UnknownRoute
from container.ipc.errors import Unsupported as Unsupported
