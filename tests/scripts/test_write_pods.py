import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.dry_run import compiled

SCRIPT = Path(__file__).parents[2] / "scripts" / "write_pods.py"
PAGE = """# Pods
Prose stays.
<!-- table: tpu -->
old
<!-- end -->
More prose.
<!-- table: gpu -->
<!-- end -->
<!-- table: memory -->
<!-- end -->
<!-- table: estimate -->
<!-- end -->
The end.
"""
ORIGIN = {"machine": "2 cores", "date": "2026-01-02", "jax": "0.10.2", "compiler": "libtpu 1"}
FACTS = ORIGIN | {
    "seconds": 200.4,
    "arguments": 300 << 20,
    "outputs": 250 << 20,
    "aliased": 250 << 20,
    "temporaries": 1000 << 20,
    "needed": 1300 << 20,
    "collectives": {"all-reduce": [118, 3 << 19], "collective-permute": [4, 1 << 20]},
    "flops": 4.0e11,
    "cycles": 21_040_000,
    "unrecognised": ["64x64 layer4"],
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_pods", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_what_stands_between_the_markers_is_rewritten(script):
    tpu, gpu = script.ROWS["tpu"][1], script.ROWS["gpu"][0]
    page = script.rewrite(PAGE, {tpu.key: FACTS, gpu.key: FACTS})
    assert page.startswith("# Pods\nProse stays.\n<!-- table: tpu -->\n")
    assert "<!-- end -->\nMore prose.\n<!-- table: gpu -->\n" in page
    assert page.endswith("<!-- end -->\nThe end.\n")
    assert "old" not in page
    assert (
        "| cityscapes_r50_os16 | v5e:4x8, 32 | 8 x 4 | 200 | 1000 | 1300, 8 % | 400 "
        "| 118 (1.5 MiB) | 4 (1.0 MiB) | none | 21.0 |"
    ) in page
    assert "| voc_r50_os16 | h200 | 1 x 1 | float32 | 200 | 1000 | 1300, 1 % | 1 |" in page
    assert "compiled on 2 cores; 2026-01-02; jax 0.10.2, libtpu 1" in page
    assert script.rewrite(page, {tpu.key: FACTS, gpu.key: FACTS}) == page


def test_what_cannot_be_compiled_says_why(script):
    row = script.ROWS["tpu"][0]
    page = script.rewrite(PAGE, {row.key: ORIGIN | {"error": "it needs 20 G of 16 G"}})
    assert "| v5e:4x4, 16 | 16 x 1 | - | - | it needs 20 G of 16 G |" in page
    assert "Not made yet: `python scripts/write_pods.py gpu`." in page


def test_settings_stand_beside_the_recipe(script):
    rows = script.ROWS["memory"]
    half = FACTS | {"temporaries": 500 << 20}
    page = script.rewrite(PAGE, {rows[0].key: FACTS, rows[1].key: half})
    assert "| the recipe | 1000 | 100 % |" in page
    assert f"| `--config.{rows[1].setting}` | 500 | 50 % |" in page
    assert "| 50 % |" not in script.rewrite(PAGE, {rows[1].key: half})  # of what is not known


def test_estimates_stand_beside_what_the_compiler_says(script):
    row = script.ROWS["estimate"][3]
    ours = {
        "arguments": 300 << 20,
        "temporaries": 1200 << 20,
        "needed": 1500 << 20,
        "collectives": {"all-reduce": [100, 3 << 20]},
    }
    ours |= {"date": "2026-01-03", "jax": "0.10.2"}
    page = script.rewrite(PAGE, {row.key: FACTS, f"estimate {row.key}": ours})
    assert (
        "| cityscapes_r50_os16 | v5e:4x8 | 8 x 4 | bfloat16 | 1200 | 1000 | 1.20 "
        "| 1500 | 1300 | 1.15 | 3 | 2 |"
    ) in page
    assert "`python scripts/write_pods.py estimate`, 2026-01-03, jax 0.10.2;" in page


def test_a_page_without_a_place_for_a_table_is_an_error(script):
    with pytest.raises(ValueError, match="has no <!-- table: gpu -->"):
        script.rewrite(PAGE.replace("gpu", "other"), {})


def test_a_program_is_compiled_again_only_when_it_changed(script, monkeypatch, capsys):
    row = script.Row("cpu:2", "voc_r50_os16", "float32")

    def lower(config, devices):
        assert config.model.dtype == "float32"
        assert len(devices) == 2
        return jax.jit(lambda x: x + change).lower(jnp.zeros(3))

    monkeypatch.setattr(compiled, "lower_step", lower)
    change = 1.0
    first = script.update(row, {})
    assert first["arguments"] == 12
    assert json.loads(json.dumps(first))["jax"] == jax.__version__
    assert script.update(row, first) is first
    change = 2.0
    assert script.update(row, first)["program"] != first["program"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("known") for line in lines] == [False, True, False]


def test_the_page_shows_what_is_known(script):
    if not script.PAGE.exists():
        pytest.skip("there is no page")
    page = script.PAGE.read_text()
    assert script.rewrite(page, script.read_results()) == page
