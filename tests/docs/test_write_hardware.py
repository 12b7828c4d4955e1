import json

import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.dry_run import compiled

PAGE = """# Hardware
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


TPU, GPU = "v5e:4x8 cityscapes_r50_os16 bfloat16 spatial=4", "h200 voc_r50_os16 float32 spatial=1"
WHOLE = "h200 ade20k_r101_os8 bfloat16 spatial=1"
TABLES = {
    "tpu": [TPU],
    "gpu": [GPU],
    "memory": [WHOLE, f"{WHOLE} model.remat=4"],
    "estimate": [f"estimate {TPU}"],
}


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("write_hardware", "docs")


@pytest.fixture(scope="module")
def rewrite(script):
    """Returns rewrite(figures, page=PAGE) -> the page with the tables of these figures."""
    return lambda figures, page=PAGE: script.rewrite(page, {"tables": TABLES, "figures": figures})


def test_only_what_stands_between_the_markers_is_rewritten(rewrite):
    page = rewrite({TPU: FACTS, GPU: FACTS})
    assert page.startswith("# Hardware\nProse stays.\n<!-- table: tpu -->\n")
    assert "<!-- end -->\nMore prose.\n<!-- table: gpu -->\n" in page
    assert page.endswith("<!-- end -->\nThe end.\n")
    assert "old" not in page
    assert (
        "| cityscapes_r50_os16 | v5e:4x8 | 8 x 4 | bfloat16 | 200 | 1000 | 1300, 8 % | 400 | 21.0 "
        "| all-reduce: 118 (1.5 MiB); collective-permute: 4 (1.0 MiB) |"
    ) in page
    assert "| voc_r50_os16 | h200 | 1 x 1 | float32 | 200 | 1000 | 1300, 1 % | 1 |" in page
    assert "compiled on 2 cores; 2026-01-02; jax 0.10.2, libtpu 1. Nothing was executed." in page
    assert rewrite({TPU: FACTS, GPU: FACTS}, page) == page


def test_both_types_of_a_recipe_share_a_line(script):
    other = GPU.replace("float32", "bfloat16")
    results = {
        "tables": TABLES | {"gpu": [GPU, other]},
        "figures": {GPU: FACTS, other: FACTS | {"temporaries": 500 << 20}},
    }
    page = script.rewrite(PAGE, results)
    assert "| voc_r50_os16 | h200 | 1 x 1 | float32 / bfloat16 | 200 | 1000 / 500 |" in page
    results["figures"][other] = ORIGIN | {"error": "too large"}
    assert "| float32 / bfloat16 | 200 / too large | 1000 / - |" in script.rewrite(PAGE, results)


def test_what_cannot_be_compiled_says_why(rewrite):
    page = rewrite({TPU: ORIGIN | {"error": "it needs 20 G of 16 G"}})
    assert "| v5e:4x8 | 8 x 4 | bfloat16 | it needs 20 G of 16 G |" in page
    assert "Not made yet: `python docs/write_hardware.py gpu`." in page


def test_settings_stand_beside_the_recipe(rewrite):
    half = FACTS | {"temporaries": 500 << 20}
    page = rewrite({WHOLE: FACTS, TABLES["memory"][1]: half})
    assert "| ade20k_r101_os8, h200, 1 x 1, bfloat16 | 1000 | 100 % |" in page
    assert "| `--config.model.remat=4` | 500 | 50 % |" in page
    alone = rewrite({TABLES["memory"][1]: half})
    assert "| 500 | - |" in alone  # the share of an unknown figure
    assert f"Not known yet: {WHOLE}." in alone


def test_estimates_stand_beside_what_the_compiler_says(rewrite):
    ours = {
        "arguments": 300 << 20,
        "temporaries": 1200 << 20,
        "needed": 1500 << 20,
        "collectives": {"all-reduce": [100, 3 << 20]},
    }
    ours |= {"date": "2026-01-03", "jax": "0.10.2"}
    page = rewrite({TPU: FACTS, f"estimate {TPU}": ours})
    assert (
        "| cityscapes_r50_os16 | v5e:4x8 | 8 x 4 | bfloat16 | 1200 | 1000 | 1.20 "
        "| 1500 | 1300 | 1.15 | 3 | 2 |"
    ) in page
    assert "`python docs/write_hardware.py estimate`; 2026-01-03; jax 0.10.2;" in page


def test_a_page_without_a_place_for_a_table_is_an_error(rewrite):
    with pytest.raises(ValueError, match="no <!-- table: gpu -->"):
        rewrite({}, PAGE.replace("gpu", "other"))


def test_a_step_is_compiled_again_only_when_it_changed(script, monkeypatch):
    row = script.Row.parse("cpu:2 voc_r50_os16 float32 spatial=1 model.remat=4")

    def lower(config, devices):
        assert config.model.dtype == "float32"
        assert config.model.remat == (4,)
        assert len(devices) == 2
        return jax.jit(lambda x: x + change).lower(jnp.zeros(3))

    monkeypatch.setattr(compiled, "lower_step", lower)
    change = 1.0
    first = script.compile_row(row, {})
    assert first["arguments"] == 12
    assert json.loads(json.dumps(first))["jax"] == jax.__version__
    assert script.compile_row(row, first) is first
    change = 2.0
    assert script.compile_row(row, first)["lowered"] != first["lowered"]


def test_the_page_shows_what_is_known(script):
    page, results = script.PAGE.read_text(), script.read_results()
    assert script.rewrite(page, results) == page
    assert script.format_results(results) == script.RESULTS.read_text()
    configs = {script.Row.parse(key).config().name for key in results["tables"]["gpu"]}
    assert len(configs) == 12
