import pytest

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.errors import ConfigError

GET = "from deeplab_jax import config\ndef get_config():\n    c = config.get_config('folder')\n"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("x = (\n", ", line 1", "fails with SyntaxError: '(' was never closed"),
        ("\nexec('x = (')\n", ", line 2", "fails with SyntaxError: '(' was never closed"),
        ("\n1 / 0\n", ", line 2", "fails with ZeroDivisionError: division by zero"),
        ("import nowhere_at_all\n", ", line 1", "fails with ModuleNotFoundError: "),
        (GET + "    c.train.lrr = 1\n", ", line 4: config.train.lrr", "no such field"),
        (GET + "    c.train.lr = 'x'\n", ", line 4: config.train.lr", "must be a number ("),
    ],
)
def test_fault_of_a_recipe_names_its_line_and_field(tmp_path, text, where, what):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    assert str(caught.value).startswith(f"{file}{where}: ")
    assert what in str(caught.value)
