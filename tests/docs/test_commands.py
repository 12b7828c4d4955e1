"""Every command of the pages is run: here on drawn stand-ins, or where `ELSEWHERE` says.

Here networks are narrow and trainings two steps long (`SMALL`); what a page presupposes, such as a
folder of photographs, is drawn.
"""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from deeplab_jax import cli
from deeplab_jax.config.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
RUN_HERE = ("README.md", "your-data.md", "training.md", "evaluation.md", "checkpoints.md")
# Folders and pages whose commands repeat those of pages that run: their flags, fields and values
# are read, and no more.
READ_HERE = ("how-to/", "coming-from/", "models/", "links.md", "files.md", "start/",
             "explanation/", "results/", "index.md")  # fmt: skip
# What stands for a recipe or checkpoint that such a page presupposes.
PRESUPPOSED = {"mine.py": "camvid_r50_os16", "runs/cityscapes": "cityscapes_r50_os16",
               "runs/ade20k": "ade20k_r50_os16", "runs/mine": "camvid_r50_os16"}  # fmt: skip
SMALL = (
    "model.depth=18",
    "model.width=8",
    "model.head_channels=16",
    "model.low_level_channels=4",
    "model.aux_channels=8",
    "model.atrous_rates=1,2,3",
    "data.crop_size=64,64",
    "data.resize_base=97,65",
    "data.num_workers=0",
    "eval.resize_base=97,65",
    "train.batch_size=4",
    "train.loss_groups=1",
    "train.steps=2",
    "init.backbone=none",
)
# Beginnings of commands that are not run here, and why or where they are.
ELSEWHERE = {
    r"deeplab prepare (voc|ade20k|cityscapes) ": "tests/data/writers/test_official.py, on drawn"
    " archives",
    r"deeplab convert from-pytorch ": "tests/convert/test_page.py, on small networks",
    r"deeplab demo": "tests/demo/test_main.py, with fewer images and steps",
    r"deeplab train .* --hardware ": "tests/dry_run/test_gather.py, where the data are missing too",
    r"scripts/launch_tpu_pod\.sh |JAX_PLATFORMS=cpu scripts/launch_tpu_pod\.sh ": "tests/launch/"
    "test_launch_tpu_pod.py, with stand-ins for gcloud and ssh",
    r"deeplab evaluate --checkpoint gs://": "tests/buckets/test_runs.py, in a server's bucket",
    r"sbatch ": "tests/launch/test_train_slurm.py, with a stand-in for srun",
    r"gcloud |sudo |git archive ": "not run: a cloud account or an administrator is needed",
    r"python3 -m venv |pip install |scripts/(quickstart|test|docs)\.sh": "not run by a test: they"
    " make the environment that tests run in",
    r"python (tests/golden/write_parity|docs/write_hardware)\.py": "not run by a test: minutes to"
    " hours",
    r"python scripts/bench_input\.py |scripts/bench_input\.py ": "tests/scripts/"
    "test_bench_input.py, on few images",
    r"deeplab selftest": "tests/selftest/test_checks.py, in parts, and whole in test_run.py",
    r"(PYTHON=\S+ )?scripts/gpu_evidence\.sh": "tests/scripts/test_gpu_evidence.py, as a rehearsal",
    r"deeplab preview ": "tests/preview/test_main.py, on drawn samples",
    r"deeplab compare ": "tests/report/test_compare.py, on evaluations of drawn data",
    r"deeplab train .*--seeds ": "tests/account/test_seeds.py, on a tiny network",
    r"python scripts/draw_rare\.py ": "tests/scripts/test_draw_rare.py, on few images",
    r"deeplab train --config rare/": "not run by a test: two minutes each",
    r"deeplab bench": "tests/benchmark/test_run.py, on a tiny network",
    r"python docs/write_performance\.py": "tests/docs/test_write_performance.py",
    r"python docs/write_results\.py": "tests/docs/test_write_results.py",
    r"deeplab (export|verify) ": "tests/export/test_folders.py, on a small network",
    r"deeplab serve ": "tests/serve/test_process.py, on a small network",
    r"python scripts/bench_export\.py": "not run by a test: it times",
    r"python scripts/bench_checkpoint\.py": "not run by a test: it times",
}


def title(page):
    """Returns a page's path under docs/."""
    return str(page.relative_to(ROOT)).removeprefix("docs/")


def commands(page):
    """Returns the commands of a page: the lines of its blocks that are in no language."""
    blocks = re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    code = "".join(text for language, text in blocks if not language)
    lines = code.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*", "", re.sub(r"\s+", " ", line)) for line in lines]
    return [line for line in lines if line and line[0] != "#"]


def elsewhere(command):
    return next((why for start, why in ELSEWHERE.items() if re.match(start, command)), None)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_command_is_run_somewhere(page):
    if page.name == "convert.md":
        return  # tests/convert/test_page.py runs them all
    if page.parent.name == "tutorials":
        return  # the site's build runs them all: tests/docs/test_site.py
    for command in commands(page):
        if why := elsewhere(command):
            test = re.match(r"[\w/]+\.py", why)
            assert not test or (ROOT / test.group()).is_file(), why
        else:
            assert title(page).startswith((*RUN_HERE, *READ_HERE)), (
                f"{command} of {page.name} is run nowhere"
            )
            assert command.startswith("deeplab ")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if title(page).startswith(READ_HERE)], ids=title
)
def test_values_of_fields_can_be_used(page):
    for command in commands(page):
        words = shlex.split(command)
        overrides = [word for word in words if word.startswith("--config.")]
        flags = [flag for flag in ("--config", "--checkpoint") if flag in words]
        if words[0] != "deeplab" or not flags:
            continue
        named = words[words.index(flags[-1]) + 1]
        recipe = PRESUPPOSED.get(named, Path(named).name)
        if words[1] in ("train", "evaluate", "predict", "preview", "doctor"):
            none = ["--config.init.backbone=none"] * ("init." not in " ".join(overrides))
            assert load_recipe(recipe, [*none, *overrides]), command


def test_the_readme_converts_as_the_page_about_it():
    known = commands(ROOT / "docs" / "convert.md")
    ours = [c for c in commands(ROOT / "README.md") if c.startswith("deeplab convert from-")]
    assert ours
    assert set(ours) <= set(known)


def flags_of(verb):
    """Returns the flags that the page of commands has for a verb; a test holds it to the code."""
    page = (ROOT / "docs" / "cli.md").read_text()
    return set(re.findall(r"--[\w.-]+", page.split(f"\n## deeplab {verb}\n")[1].split("\n## ")[0]))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_verbs_and_flags_exist_also_in_the_text(page):
    named = re.findall(
        r"`(?:python -m )?deeplab ([a-z][^`]*)`", page.read_text().replace("\n", " ")
    )
    for words in [
        *named,
        *(re.sub(r".*?\bdeeplab ", "", c) for c in commands(page) if "deeplab " in c),
    ]:
        first, *rest = words.split()
        verbs = [verb for verb in (first, " ".join([first, *rest[:1]])) if verb in cli.VERBS]
        if first in ("config", "prepare") and not verbs:
            continue  # the group, as in `deeplab config` verbs
        assert verbs, words
        used = {flag.partition("=")[0] for flag in rest if re.match(r"--[a-z]", flag)}
        wrong = {flag for flag in used if not flag.startswith("--config.")} - flags_of(verbs[0])
        assert not wrong or verbs == ["prepare"], words


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def samples(root):
    """Yields (split, path of the image, path of its mask)."""
    for image in sorted((root / "images").glob("*/*")):
        split = image.parent.name
        yield split, image, root / "labels" / split / f"{image.stem}.png"


def like_camvid(root):
    for split, image, mask in samples(root):
        label = read(mask)
        label[label == 255] = 11
        write(root / split / f"{image.stem}.png", read(image))
        write(root / f"{split}annot" / f"{image.stem}.png", label)


def like_voc(root):
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, image, mask in samples(root):
        write(root / "JPEGImages" / f"{split}{image.stem}.jpg", read(image))
        write(root / "SegmentationClass" / f"{split}{image.stem}.png", read(mask))
        with (lists / f"{split}.txt").open("a") as file:
            file.write(f"{split}{image.stem}\n")


def black_and_white(root):
    for split, image, mask in samples(root):
        name = f"{split}{image.stem}"
        write(root / "all" / f"{name}.jpg", read(image))
        write(root / "all" / f"{name}_mask.png", np.uint8(255) * (read(mask) > 1))
        with (root / f"{split}.txt").open("a") as file:
            file.write(f"{name}\n")


# Drawn before the command that contains the text; and what that command is given more.
BEFORE = {"masks={split}annot": like_camvid, "JPEGImages": like_voc, "mask_suffix": black_and_white}
MORE = {"mask_suffix": ("--config.model.num_classes=2", "--config.data.class_names=a,b"),
        "camvid_r18_os16_tuned": ("--config.train.warmup_steps=0",)}  # fmt: skip


@pytest.fixture
def place(make_tree, saved_run, tiny_recipe, tmp_path, monkeypatch):
    """Returns place(page) -> a directory with what the page's commands name, the current one."""

    def place(page):
        for name in ("photos", "DIR"):
            tree = make_tree("folder", num_train=8, num_val=2, num_classes=11)
            shutil.copytree(tree, tmp_path / name)
        if page == "README.md":
            shutil.copytree(make_tree("ade20k", num_train=8, num_val=2), tmp_path / "data")
        shutil.copy(next((tmp_path / "photos" / "images" / "val").iterdir()), "street.jpg")
        if page == "evaluation.md":
            shutil.copytree(saved_run.path, "runs/mine")
        if page == "training.md":
            shutil.copytree(saved_run.path, "weights/voc_r50_os16")
        if page in ("training.md", "checkpoints.md"):
            tree = make_tree("folder", num_train=8, num_val=2, num_classes=4)
            root = f'data.root = "{tree}"\n'
            Path("mine.py").write_text(tiny_recipe(f"{root}train.steps = 2\ntrain.batch_size = 4"))
        return tmp_path

    monkeypatch.chdir(tmp_path)
    return place


@pytest.mark.process("trains ten times; each verb has tests of its own in the first tier")
@pytest.mark.parametrize("page", RUN_HERE)
def test_commands_run_in_their_order(page, place, call, compile_quickly):
    top = place(page)
    for number, command in enumerate(commands(ROOT / page if page == "README.md" else
                                              ROOT / "docs" / page)):  # fmt: skip
        if elsewhere(command):
            continue
        for text, draw in BEFORE.items():
            if text in command:
                draw(top / "DIR")
        for name, value in (("IMAGES", "photos/images/val"), ("RECIPE", "mine.py")):
            command = command.replace(name, value)
        words = shlex.split(command)[1:]
        if words[0] == "train" or words[:2] == ["prepare", "cache"]:
            words += [f"--config.{change}" for change in SMALL]
            words += [more for text, flags in MORE.items() if text in command for more in flags]
        if words[0] == "train" and page != "README.md" and "--workdir" not in words:
            words += ["--workdir", f"runs/{number}"]
        code, _, err = call(*words)
        assert code == 0, (words, err)
    if page == "README.md":
        [block] = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
        exec(block, {})
        assert (top / "street_overlay.png").is_file()
