import json

import pytest

PAGE = """# Performance
Prose stays.
<!-- table: bench cpu-quick -->
before
<!-- end -->
<!-- table: tpu -->
<!-- end -->
<!-- table: lost -->
<!-- end -->
The end.
"""
SIDE = {"seconds": [0.5], "median": 0.5, "low": 0.4, "high": 0.6, "images_per_second": 4.0,
        "settings": "jax"}  # fmt: skip
BENCH = {
    "command": "deeplab bench --quick",
    "date": "2026-01-02T03:04:05Z",
    "machine": {"processor": "EPYC", "cores": 2, "platform": "cpu", "device": "cpu", "load": 0.1},
    "packages": {"deeplab_jax": "1.0", "jax": "0.10.2", "torch": "2.13.0"},
    "ceilings": {"float32": {"flops_per_second": 1.2e11, "by": "NumPy"}},
    "notes": ["one note"],
    "cases": [
        {
            "case": "train", "recipe": "a", "network": "R-18-D16", "dtype": "float32",
            "batch_size": 2, "size": [64, 96],
            "sides": {
                "deeplab_jax": SIDE | {"share_of_ceiling": 0.5, "memory_bytes": 3 << 20,
                                       "first_seconds": 7.0, "compile": "cold"},
                "pytorch eager": SIDE,
            },
            "ratios": {"pytorch eager": {"median": 0.9, "low": 0.8, "high": 1.1}},
        },
        {"case": "inference", "recipe": "a", "network": "R-18-D16", "dtype": "float32",
         "batch_size": 1, "size": [64, 96], "error": "out of memory"},
    ],
}  # fmt: skip
TPU = {"command": "python x.py", "machine": "libtpu", "date": "2026-01-03", "columns": ["a", "b"],
       "rows": [["loss", 31]]}  # fmt: skip
LOST = [{"form": "im2col", "figure": "8 times as long", "command": "python y.py"}]
RESULTS = {"bench": {}, "tables": {"tpu": TPU}, "lost": LOST}


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("write_performance", "docs")


def test_only_what_stands_between_the_markers_is_rewritten(script):
    results = json.loads(json.dumps(RESULTS))
    script.add(results, BENCH)
    script.add(results, BENCH | {"command": "deeplab bench --quick --output elsewhere"})
    script.add(results, BENCH)
    assert list(results["bench"]) == ["cpu-quick"]
    page = script.rewrite(PAGE, results)
    assert page.startswith("# Performance\nProse stays.\n<!-- table: bench cpu-quick -->\n```\n")
    assert page.endswith("<!-- end -->\nThe end.\n")
    assert "before" not in page
    for line in (
        "deeplab bench --quick",
        "EPYC, 2 cores, load 0.1 at the start; deeplab_jax 1.0, jax 0.10.2, torch 2.13.0;"
        " 2026-01-02. Ceiling in float32: 120 GFLOP/s a device (NumPy).",
        "| train | a, R-18-D16, 2 x 64x96, float32 | deeplab_jax | 500 (400 to 600) | 4 | 50 % | 3"
        " | 7.0 (cold) | - |",
        "|  |  | pytorch eager | 500 (400 to 600) | 4 | - | - | - | 0.90 (0.80 to 1.10) |",
        "| inference | a, R-18-D16, 1 x 64x96, float32 | deeplab_jax | out of memory | - | - | - |"
        " - | - |",
        "- one note",
        "| loss | 31 |",
        "`python x.py`; libtpu; 2026-01-03.",
        "| im2col | 8 times as long | `python y.py` |",
    ):
        assert f"{line}\n" in page
    assert script.rewrite(page, results) == page


@pytest.mark.parametrize("page", [PAGE, PAGE.replace("tpu", "gpu")])
def test_a_table_without_a_place_and_a_place_without_a_table_are_errors(script, page):
    with pytest.raises(ValueError, match=r"or a table: bench cpu-quick"):
        script.rewrite(page, RESULTS)


def test_the_page_shows_what_is_known(script):
    page, results = script.PAGE.read_text(), json.loads(script.RESULTS.read_text())
    assert script.rewrite(page, results) == page
    assert script.format_results(results) == script.RESULTS.read_text()
    assert all(bench["cases"] for bench in results["bench"].values())
