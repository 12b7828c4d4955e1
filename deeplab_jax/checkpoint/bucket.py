"""Orbax in buckets.

Orbax 0.12 asks three of its functions whether an address lies in a bucket, and with which driver
tensorstore reads and writes there. They know gs:// alone: for s3:// a local folder of that name
would be made. Here they learn of s3://, which tensorstore knows, so that a step there is written as
one on gs:// is: under its own name, with the file `commit_success.txt` last. For both they limit
how often a request is repeated; otherwise a process could not end for a quarter of an hour.
"""

import os
import re
from pathlib import Path
from typing import Any

import tensorstore as ts
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from deeplab_jax.errors import ResourceError, describe_cause, root_cause
from deeplab_jax.utils.places import is_address
from deeplab_jax.utils.steps import COMPLETE

# With pauses of 1, 2, 4, 8, 16, 16, ... seconds: 79 in all.
RETRIES = {"max_retries": 8, "initial_delay": "1s", "max_delay": "16s"}


def enable(place: object) -> None:
    """Prepares Orbax for `place`, if that is an address.

    Raises:
      ResourceError: this version of Orbax has other functions.
    """
    if is_address(str(place)):
        _enable(str(place))


def _enable(place: str) -> None:
    if getattr(gcs_utils, "has_our_drivers", False):
        return
    try:
        is_bucket, to_spec = gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs
        has_driver = tensorstore_utils._use_gcs_driver
    except AttributeError as error:
        what = "cannot be used with this version of orbax-checkpoint"
        raise ResourceError(place, what, "pip install 'orbax-checkpoint<0.13'") from error

    def spec(path: Any) -> dict[str, Any]:
        if _is_on_s3(path):
            return s3_spec(str(path)) | {"s3_request_retries": RETRIES}
        return to_spec(path) | {"gcs_request_retries": RETRIES}

    gcs_utils.is_gcs_path = lambda path: _is_on_s3(path) or is_bucket(path)
    gcs_utils.get_kvstore_for_gcs = spec
    tensorstore_utils._use_gcs_driver = lambda path: _is_on_s3(path) or has_driver(path)
    gcs_utils.has_our_drivers = True


def lost(where: Path, error: BaseException) -> ResourceError | None:
    """Returns the error where the bucket, and not the step, is the reason of a failed reading.

    Orbax names no reason where it cannot read a list of arrays; so a file is asked for here.
    """
    cause: BaseException = root_cause(error)
    if not re.search("retry attempts failed|PERMISSION_DENIED|UNAUTHENTICATED", str(cause)):
        try:
            place = ts.KvStore.open(gcs_utils.get_kvstore_for_gcs(f"{where}/")).result()
            place.read(COMPLETE).result()
            return None
        except Exception as other:
            cause = other
            cause.__suppress_context__ = True  # the error that is at hand
    what = f"the bucket cannot be read: {describe_cause(cause)}"
    return ResourceError(str(where), what, "check the connection and the credentials")


def _is_on_s3(path: object) -> bool:
    return str(path).startswith("s3:/")  # Orbax makes one slash of two


def s3_spec(path: str) -> dict[str, Any]:
    """Returns tensorstore's driver for an address; the settings are those that s3fs takes."""
    bucket, _, key = path.removeprefix("s3:").lstrip("/").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # others are searched for, with a line about each
        spec["aws_credentials"] = {"type": "environment"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec["endpoint"] = endpoint.rstrip("/")
    if region or endpoint:
        spec["aws_region"] = region or "us-east-1"
    return spec
