"""A lock between processes, which the system releases when its holder ends in any way."""

import fcntl


def try_lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; returns False if another process has it.

    Without locks in the file system there is no protection.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
