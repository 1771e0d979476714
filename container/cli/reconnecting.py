"""Going on after the API server went away: is it being replaced, or has the system stopped?"""

from __future__ import annotations

from container.cli.session import QUICK, Session

RECONNECTING = 60.0
"""Seconds for an API server that went away to be back."""


async def comes_back(session: Session) -> bool:
    """Return whether the API server is there again; False when the whole system has stopped.

    Raises:
        trio.TooSlowError: neither has come about in a minute.
    """
    import trio

    from container.ipc import Fate, PeerGone

    with trio.fail_after(RECONNECTING):
        while True:
            try:
                # The launcher first: connecting to the API server starts it, which a system that
                # is about to stop should be spared.
                async with session.launcher() as launcher:
                    with trio.fail_after(QUICK):
                        await launcher.status()
                async with session.containers(start=False):
                    return True
            except PeerGone as gone:
                if gone.fate is Fate.REFUSED:
                    return False
            # It ended under us, as one that is being stopped does: a moment later we are refused.
            await trio.sleep(0.05)
