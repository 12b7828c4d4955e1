import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.version import __version__ as jaxlib_version

from deeplab_jax.distributed import compiler_faults
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import ConfigError

FAULT = compiler_faults.FAULTS[0]


def test_small_products_and_their_sum_go_wrong_in_known_versions_alone():
    expected, got = FAULT.shows()
    assert expected == 2.0**30
    assert compiler_faults.is_wrong(expected, got) == (jaxlib_version in FAULT.jaxlib)


@pytest.mark.parametrize(
    ("function", "is_in"),
    [
        (lambda x, w: jnp.sum(jnp.square(jnp.matmul(x, w)), -1), True),
        (lambda x, w: jnp.matmul(x, w), False),
        (lambda x, w: jnp.sum(x * x, 0), False),
    ],
)
@pytest.mark.skipif(jaxlib_version not in FAULT.jaxlib, reason="this compiler has no such fusions")
def test_pattern_is_found_in_a_compiled_program(function, is_in):
    x, w = np.ones((40000, 3), np.float32), np.ones((3, 3), np.float32)
    assert FAULT.is_in(jax.jit(function).lower(x, w).compile().as_text()) == is_in


def test_run_whose_program_contains_a_fault_is_refused(monkeypatch):
    mesh = mesh_lib.make_mesh(1, jax.devices()[:1])

    def compile_one(**changes):
        monkeypatch.setattr(compiler_faults, "FAULTS", (FAULT._replace(**changes),))
        with compiler_faults.refusing(mesh, "the training step"):
            return jax.jit(lambda x: jnp.cos(x) + 3.25).lower(1.0).compile()

    wrong = {
        "jaxlib": (jaxlib_version,),
        "shows": lambda: (4.0, 3.0),
        "is_in": lambda text: "constant(3.25)" in text,
    }
    with pytest.raises(ConfigError) as caught:
        compile_one(**wrong)
    assert str(caught.value) == (
        f"jaxlib {jaxlib_version}: the training step contains {FAULT.name}, which goes wrong here"
        f" ({FAULT.source}): expected 4, got 3 - {FAULT.fix}"
    )
    compile_one(**wrong | {"jaxlib": ("0.0.1",)})
    compile_one(**wrong | {"shows": lambda: (4.0, 4.0)})
    compile_one(**wrong | {"is_in": lambda text: False})
    compile_one(**wrong | {"platform": "tpu"})


def test_programs_compiled_before_are_no_part_of_the_run(monkeypatch):
    always = FAULT._replace(jaxlib=(jaxlib_version,), shows=lambda: (4.0, 3.0))
    always = always._replace(is_in=lambda text: "constant(7.75)" in text)
    monkeypatch.setattr(compiler_faults, "FAULTS", (always,))
    canary = jax.jit(lambda x: jnp.cos(x) + 7.75).lower(1.0).compile()
    with compiler_faults.refusing(mesh_lib.make_mesh(1, jax.devices()[:1]), "the training step"):
        jax.jit(lambda x: jnp.cos(x) + 1.5).lower(1.0).compile()
    del canary  # alive until here
