from pathlib import Path

import pytest

from deeplab_jax.distributed.shared_dir import as_path
from deeplab_jax.errors import ConfigError


def test_address_is_no_work_directory():
    for text in ("gs://bucket/run", "gs:/bucket/run", "s3://bucket"):
        with pytest.raises(ConfigError, match="is an address"):
            as_path(text)
    assert as_path("runs/a:b") == Path("runs/a:b")
