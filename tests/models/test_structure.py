import jax
import pytest

from deeplab_jax.models import build_model, init_variables
from deeplab_jax.models.structure import describe_difference, structure


@pytest.mark.parametrize("depth", [18, 50])
def test_parameters_tell_the_fields_of_their_network(narrow_config, depth):
    config = narrow_config(depth=depth).model
    params = jax.eval_shape(lambda: init_variables(build_model(config), 0))["params"]
    got = structure(params)
    assert got == {key: getattr(config, key) for key in got}
    assert {"depth", "stem", "width", "num_classes", "head_channels"} <= set(got)
    backbone = structure(params["backbone"])
    assert backbone == {key: got[key] for key in ("depth", "stem", "width")}
    del params["backbone"]["layer3_1"]  # of no known depth
    assert "depth" not in structure(params)


@pytest.mark.parametrize(
    ("field", "there", "here", "text"),
    [
        ("depth", 50, 101, "a ResNet-50 there, a ResNet-101 here"),
        ("stem", "deep", "7x7", "a deep stem there, a 7x7 one here"),
        ("num_classes", 21, 4, "21 classes there, 4 here"),
        ("head_channels", 512, 256, "head channels 512 there, 256 here"),
    ],
)
def test_difference_is_told_in_words(field, there, here, text):
    assert describe_difference(field, there, here) == text
