"""Keeps a failure to read, which is raised as one line, from being followed by tracebacks.

DEEPLAB_DEBUG=1 shows what Orbax logs.
"""

import asyncio
import contextlib
import logging
import os

from orbax.checkpoint._src import asyncio_utils


def _is_wanted(record: logging.LogRecord) -> bool:
    """Drops log records about Orbax."""
    about_orbax = any("/orbax/" in text for text in (record.pathname, record.getMessage()))
    return not about_orbax or _is_debugged()


def _is_debugged() -> bool:
    return os.environ.get("DEEPLAB_DEBUG") == "1"


def _run_to_the_end(loop: asyncio.AbstractEventLoop) -> None:
    """Runs an event loop until it is stopped, then until its tasks are done.

    When an array cannot be read, Orbax stops the loop while others are being read. Their threads
    would print a traceback each about the closed loop, and asyncio one for each that failed too.
    """
    if not _is_debugged():
        loop.set_exception_handler(lambda *_: None)
    with contextlib.suppress(Exception):
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def silence() -> None:
    """Changes how this process logs, and how Orbax ends its event loops."""
    for name in (None, "absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_wanted)
    if hasattr(asyncio_utils, "_run_event_loop"):
        asyncio_utils._run_event_loop = _run_to_the_end
