import json

import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.training.workdir import add_start, read_starts


def test_each_start_adds_an_entry(tmp_path, capsys):
    for began in (1.5, 2.5):
        add_start(tmp_path, {"began": began, "step": 0})
    path = tmp_path / "env.json"
    assert [entry["began"] for entry in read_starts(path)] == [1.5, 2.5]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": [1]}', "[" * 100_000, "\0"])
def test_damaged_list_of_starts_is_replaced_with_a_warning(tmp_path, capsys, content):
    path = tmp_path / "env.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"env\.json: "):
        read_starts(path)
    add_start(tmp_path, {"began": 3.0})
    assert json.loads(path.read_text()) == {"starts": [{"began": 3.0}]}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {path}: ")
    assert line.endswith("; earlier starts are lost")
