import pytest

from deeplab_jax.config import freeze, get_config
from deeplab_jax.doctor import hours
from deeplab_jax.doctor.hours import Machine
from deeplab_jax.dry_run import flops
from deeplab_jax.utils import machine

TWO_CORES = Machine(False, 2, 100e9)


@pytest.mark.parametrize("depth", [18, 50])
def test_arithmetic_is_that_of_the_network(depth):
    config = get_config("folder", depth)
    config.data.crop_size = (304, 400)
    counted = sum(flops.count_macs(freeze(config)).values())
    assert counted == pytest.approx(hours.MACS_PER_PIXEL[depth] * 304 * 400, rel=0.01)


def test_a_processor_gets_a_small_network_and_about_two_hours(make_tree, recipe_of):
    root = make_tree("folder", num_train=12, num_val=4)
    config = recipe_of(root, here=TWO_CORES)
    assert (config.model.depth, config.train.batch_size) == (18, 4)
    seconds = hours.step_seconds(TWO_CORES, 18, config.data.crop_size, 4)
    assert config.train.epochs == 300  # tiny images: the usual length takes less
    slow = TWO_CORES._replace(product_speed=TWO_CORES.product_speed / 1000)
    config = recipe_of(root, "slow.py", here=slow)
    assert 1 <= config.train.epochs < 300
    assert 3000 < config.train.epochs * 3 * seconds * 1000 <= 7200


def test_a_guess_holds_a_training_that_was_measured():
    # docs/performance.md, 2026-11-30: 4 x 360 x 480 took 1.895 s where a product did 211 GFLOP/s.
    here = Machine(False, 2, 211e9)
    most = hours.step_seconds(here, 18, (360, 480), 4)
    least = most * machine.STEP_SHARE[0] / machine.STEP_SHARE[1]
    assert least < 1.895 < most
    assert most / least < 2.5  # narrow enough to plan by


def test_the_processor_is_timed():
    here = hours.this_machine()
    assert not here.has_accelerator  # the tests hide it
    assert here.product_speed > 1e8
    assert "cores, a guess" in hours.in_words(here, 3600)


def test_a_recipes_own_hours_are_guessed_on_a_processor():
    config = get_config("folder", 18)
    config.train.epochs, config.train.batch_size = 10, 4
    config.data.crop_size = (304, 400)
    words = ["my recipe.py", "--config.data.root=elsewhere"]
    tell = lambda here: hours.of_recipe(here, freeze(config), 102, words)  # noqa: E731
    line = tell(TWO_CORES)
    seconds = 250 * hours.step_seconds(TWO_CORES, 18, (304, 400), 4)
    assert line.startswith(f"training 250 steps of 4 images: {hours.in_words(TWO_CORES, seconds)}")
    command = "deeplab train --config 'my recipe.py' --config.data.root=elsewhere --dry-run"
    assert line.endswith(f"measured: {command}")
    told = f"training 250 steps of 4 images; hours here: {command}"
    assert tell(TWO_CORES._replace(has_accelerator=True)) == told
    config.model.output_stride = 8
    assert tell(TWO_CORES) == told
