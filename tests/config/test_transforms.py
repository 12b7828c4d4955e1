import pytest

from deeplab_jax.config import get_config, transforms
from deeplab_jax.config.checks import as_text
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError

LISTED = (
    "scale",
    "crop(max_share=0.9)",
    "rotate(degrees=15, chance=1)",
    "copy_paste(classes=[1, 0])",
    "package.module:function",
    "photometric",
)


def with_transforms(text, *changes):
    changes = [f"--config.data.transforms={text}", *changes]
    return apply_overrides(get_config("folder"), changes).data.transforms


def test_a_list_is_the_same_after_the_command_line_and_in_a_recipe():
    recipe = get_config("folder")
    recipe.data.transforms = LISTED
    assert apply_overrides(recipe, []).data.transforms == LISTED
    for text in (as_text(LISTED), f"[{as_text(LISTED)}]", as_text(LISTED).replace(", ", ",")):
        got = with_transforms(text)
        assert [part.replace(" ", "") for part in got] == [x.replace(" ", "") for x in LISTED]
    assert with_transforms("") == ()


def test_values_have_defaults_and_may_be_given():
    specs = transforms.parse_all(LISTED)
    assert [spec.name for spec in specs] == [
        "scale", "crop", "rotate", "copy_paste", "package.module:function", "photometric"
    ]  # fmt: skip
    assert specs[1].values == {"max_share": 0.9}
    assert specs[2].values == {"degrees": 15, "chance": 1}
    assert specs[3].values == {"classes": [1, 0], "chance": 0.5}
    assert [spec.is_function for spec in specs] == [False] * 4 + [True, False]
    reference = {"brightness": 32, "contrast": 0.5, "saturation": 0.5, "hue": 18}
    assert specs[5].values == reference
    for name, transform in transforms.NAMED.items():  # every default is accepted
        for value in transform.parameters.values():
            assert value.default is None or value.rule.is_valid(value.default), name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flp", "there is no transform 'flp' - did you mean flip?"),
        ("hflip", "did you mean flip?"),
        ("ColorJitter", "did you mean photometric?"),
        ("CutOut", "did you mean erase?"),
        ("zzz", "use one of scale, crop, flip, "),
        ("a b", "'a b' is no name of a transform - write such as crop"),
        ("a:b:c", "is no name of a transform"),
        ("mine.darker", "did you mean mine:darker?"),
        ("flip,flip", "names flip 2 times"),
        ("flip(chance=0)", "chance must be 0 < chance <= 1, got 0 - write such as "),
        ("flip(chance=True)", "chance must be 0 < chance <= 1, got True"),
        ("flip(0.5)", "'flip(0.5)' has a value without its name"),
        ("flip(**x)", "has a value without its name"),
        ("flip(chance=x)", "'flip(chance=x)' cannot be read"),
        ("rotate(degree=3)", "has no value 'degree' - did you mean degrees?"),
        ("rotate(degrees=181)", "degrees must be a number, 0 to 180, got 181"),
        ("jpeg(quality=50.0)", "quality must be a whole number, 1 to 95, got 50.0"),
        ("photometric(contrast=float('nan'))", "cannot be read"),
        ("erase(void=1)", "void must be True or False, got 1"),
        ("copy_paste", "lacks classes, a list of numbers or names of classes"),
        ("copy_paste(classes=[])", "classes must be a list of numbers"),
        ("copy_paste(classes=[1,1])", "classes must be a list of numbers"),
        ("copy_paste(classes=[2])", "classes holds 2, and classes are 0 to 1"),
        ("3", "must be a list of names, got 3 in it"),
    ],
)
def test_a_wrong_entry_is_one_line_with_a_fix(text, told):
    with pytest.raises(ConfigError) as caught:
        with_transforms(text)
    assert str(caught.value).startswith("config.data.transforms")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scales_that_no_transform_reads_are_refused():
    scales = "--config.data.scale_range=1,1"
    with pytest.raises(ConfigError, match=r"has no scale that reads it - name scale there, or"):
        with_transforms("crop", scales)
    assert with_transforms("scale,crop", scales) == ("scale", "crop")
    assert with_transforms("", scales) == ()
