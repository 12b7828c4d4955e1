"""Orbax on S3.

Orbax 0.12 writes arrays to paths and to gs:// alone; for other addresses it would make a folder of
that name. Three of its functions tell the two apart, and choose the driver of tensorstore, which
knows S3. Here they learn of s3://, so that such a step is written as one on gs:// is: under its own
name, with the file `commit_success.txt` last.
"""

import functools
import os
from typing import Any

from deeplab_jax.errors import ResourceError

_PREFIX = "s3://"


def enable(place: object) -> None:
    """Prepares Orbax for `place`, if that is on S3.

    Raises:
      ResourceError: this version of Orbax has other functions.
    """
    if str(place).startswith(_PREFIX):
        _enable(str(place))


@functools.cache
def _enable(place: str) -> None:
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if getattr(gcs_utils, "knows_s3", False):
        return
    try:
        is_bucket, to_spec = gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs
        has_driver = tensorstore_utils._use_gcs_driver
    except AttributeError as error:
        what = "cannot be used with this version of orbax-checkpoint"
        raise ResourceError(place, what, "pip install 'orbax-checkpoint<0.13'") from error
    gcs_utils.is_gcs_path = lambda path: _is_on_s3(path) or is_bucket(path)
    gcs_utils.get_kvstore_for_gcs = lambda path: _spec(path) if _is_on_s3(path) else to_spec(path)
    tensorstore_utils._use_gcs_driver = lambda path: _is_on_s3(path) or has_driver(path)
    gcs_utils.knows_s3 = True


def _is_on_s3(path: object) -> bool:
    return str(path).startswith("s3:/")  # Orbax makes one slash of two


def _spec(path: object) -> dict[str, Any]:
    """Returns tensorstore's driver for what lies at an address; the settings are s3fs's."""
    bucket, _, key = str(path).removeprefix("s3:").lstrip("/").partition("/")
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
