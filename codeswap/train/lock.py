"""One process at a time works in a run folder."""

import fcntl
import os
import socket
from pathlib import Path


class RunLockedError(ValueError):
    """Another living process works in this run folder."""


def lock_folder(folder: Path) -> int:
    """Takes the folder for this process until it ends, however it ends (a dead owner's lock is free by itself).

    Returns the descriptor that holds the lock. Raises RunLockedError naming the owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise RunLockedError(
            f"{folder} is in use by {owner}: the same training runs already. Wait for it, or stop it and start again"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor
