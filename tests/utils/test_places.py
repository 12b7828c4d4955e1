import importlib.util
from pathlib import Path

import pytest

from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.utils.places import as_place, is_address


def test_paths_stay_paths():
    for text in ("runs/a:b", "/runs/gs", "gs/run", "a:/b", Path("runs")):
        assert type(as_place(text)) is type(Path())
        assert as_place(text) == Path(text)
        assert not is_address(text)


def test_other_addresses_and_those_without_a_folder_are_refused():
    for text in ("gs:/bucket/run", "gs://", "gs:///run", "gs://bucket", "s3://bucket/", "hf://a/b"):
        with pytest.raises(ConfigError, match="accepted are gs://BUCKET/NAME and s3://BUCKET/NAME"):
            as_place(text)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_missing_library_is_named_with_its_extra(scheme, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=rf"pip install 'deeplab_jax\[{extra}\]'"):
        as_place(f"{scheme}://bucket/run")
