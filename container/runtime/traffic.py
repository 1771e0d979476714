"""What a container's interfaces have carried, by the kernel's counters in its network namespace."""

from __future__ import annotations

from pathlib import Path


def traffic(pid: int, proc: Path = Path("/proc")) -> tuple[int, int] | None:
    """Return bytes received and sent by all interfaces but loopback. Blocking.

    An interface that was taken away takes its counters with it.

    Args:
        pid: A process in the namespace.
        proc: Where the kernel tells of processes.

    Returns:
        None: the process is gone.

    Source: proc_pid_net(5), `dev`: two lines of headings, then name, 8 counters of what was
    received and 8 of what was sent.
    """
    try:
        lines = (proc / str(pid) / "net" / "dev").read_text().splitlines()[2:]
    except OSError:
        return None
    received = sent = 0
    for line in lines:
        name, _, counters = line.partition(":")
        words = counters.split()
        if name.strip() != "lo" and len(words) >= 9:
            received += int(words[0])
            sent += int(words[8])
    return received, sent
