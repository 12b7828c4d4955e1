"""Places of directories and files: paths, and addresses in a bucket, gs://BUCKET/... or s3://....

An address has the methods of a path. Importing this loads neither JAX nor a bucket's library, and
a path stays `pathlib`'s.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import cast

from deeplab_jax.errors import ConfigError, ResourceError, check_writable

ACCEPTED = "gs://BUCKET/NAME and s3://BUCKET/NAME"
_LIBRARIES = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}  # scheme -> extra, what it installs


def is_address(place: str | os.PathLike) -> bool:
    """Tells whether a place lies in a bucket."""
    return str(place).startswith(tuple(f"{scheme}://" for scheme in _LIBRARIES))


def as_place(place: str | os.PathLike) -> Path:
    """Returns the path, or for an address the `buckets.Address`, which has a path's methods.

    Raises:
      ConfigError: it is an address of another kind, or names no bucket.
      ResourceError: the library for its kind of bucket is not installed.
    """
    text = os.fspath(place)
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    if match is None:
        return Path(place)
    scheme = match[1]
    if not re.match(r"(gs|s3)://[^/]+/+[^/]", text):
        what = f"is an address ({match[0]}), and accepted are {ACCEPTED}"
        raise ConfigError(text, what, "give one of these, or a path")
    extra, library = _LIBRARIES[scheme]
    if importlib.util.find_spec(library) is None:
        what = f"needs {library}, which is not installed"
        raise ResourceError(text, what, f"pip install 'deeplab_jax[{extra}]'")
    from deeplab_jax.utils.buckets import Address

    return cast(Path, Address(text.rstrip("/")))


def is_taken(place: Path) -> bool:
    """Tells whether there is something at a place, be it a link that leads nowhere."""
    return place.exists() if is_address(place) else os.path.lexists(place)


def check_place(place: Path, flag: str) -> None:
    """Refuses a file that could not be written, as `check_writable`; of a bucket, nothing."""
    if not is_address(place):
        check_writable(place, flag)
