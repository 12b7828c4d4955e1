import numpy as np
import pytest


@pytest.mark.process("segments by a run; a picture of the pages, which no other test needs")
@pytest.mark.usefixtures("compile_once")
def test_examples_are_drawn_from_a_run(saved_run, load_script):
    module = load_script("write_pictures", "docs")
    picture = module.draw_examples(saved_run.path)  # two of the three images are wide
    assert picture.width == 4 * 320 + 3 * 8
    assert picture.height > 2 * 256 + 8
    pixels = np.asarray(picture)
    assert (pixels[:256, 320:328] == 255).all()  # between image and truth
    truth, prediction = pixels[:256, 328:648], pixels[:256, 656:976]
    colors = {tuple(color) for color in saved_run.validation.palette.tolist()}
    assert {tuple(color) for color in np.unique(prediction.reshape(-1, 3), axis=0)} <= colors
    assert (255, 255, 255) in {tuple(color) for color in truth.reshape(-1, 3)[::7].tolist()}
