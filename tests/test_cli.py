import errno
import io
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points

import jax
import pytest

from deeplab_jax import __version__, cli
from deeplab_jax.errors import DataError, Interrupted

RECIPE = "configs/quickstart.py"


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch, repository):
    monkeypatch.chdir(repository)


@pytest.fixture
def run(call):
    """Returns run(error): what `cli.run` makes of a command that raises it."""

    def run(error):
        def command(argv):
            raise error

        return call(command=lambda argv: cli.run(command, argv))

    return run


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["train", "--config", RECIPE, "--config.optim.lrr=1"], "did you mean config.train.lr?"),
        (["train", "--config", RECIPE, "--config.train.lrr", "1"], "did you mean config.train.lr?"),
        (["train", "--config", RECIPE, "--config.train.lr=abc"], "'abc' is not a number"),
        (["train", "--config", RECIPE, "--config.train.lr"], "write --config.train.lr=VALUE"),
        (["train", "--config", RECIPE, "--config.model=3"], "is a group of fields, not a value"),
        (
            ["train", "--config", RECIPE, "--config.model.depth=35"],
            "must be 18, 34, 50 or 101, got 35",
        ),
        (["train", "--config", RECIPE, "--workdri=x"], "did you mean --workdir?"),
        (["train", "--workdri=x"], "did you mean --workdir?"),
        (["train", "--config", RECIPE, "--steps=3"], "did you mean --config.train.steps=3?"),
        (["train", "--config", RECIPE, "--lr", "0.02"], "did you mean --config.train.lr=0.02?"),
        (["train", "--config", RECIPE, "--img", "64"], "--config.data.crop_size=64,64?"),
        (["train", "--config", RECIPE, "--amp"], "did you mean --config.model.dtype=bfloat16?"),
        (["train", "--config", RECIPE, "--grad-clip=1"], "--config.train.clip_norm=1?"),
        (["train", "--config", RECIPE, "--ema-decay=0.99"], "config.train.ema_half_life=STEPS?"),
        (["train", "--config", RECIPE, "--warmup-epochs=5"], "config.train.warmup_steps=STEPS?"),
        (["train", "--config", RECIPE, "--freeze", "backbone"], "config.train.freeze=backbone?"),
        (["train", "--config", RECIPE, "--num-classes=4"], "--config.model.num_classes=4?"),
        (["train", "--config", RECIPE, "--save-dir", "x"], "did you mean --workdir x?"),
        (["train", "--config", RECIPE, "--resume"], "same --workdir continues the run"),
        (["train", "--config", RECIPE, "--device=cuda"], "devices are found automatically"),
        (["train", RECIPE], f"did you mean --config {RECIPE}?"),
        (["doctor", "photos"], "did you mean --data photos?"),
        (["evaluate", "--weights", "x"], "did you mean --checkpoint x?"),
        (["evaluate", "--checkpoint", "x", "--batch-size=8"], "see deeplab evaluate --help"),
        (["predict", "--source", "a.jpg"], "name images without a flag: "),
        (["report", "--checkpoint", "x"], "name the run without a flag: deeplab report x"),
        (["goodput", "--workdir", "x"], "name the run without a flag: deeplab goodput x"),
        (["reproduce", "x", "--step", "5"], "did you mean --steps?"),
        (["train", "--config", RECIPE, "more"], "unrecognized arguments: more"),
        (["train", "--conf", RECIPE], f"did you mean --config {RECIPE}?"),
        (["train"], "arguments are required: --config"),
        (["train", "--config"], "expected one argument"),
        (["train", "--config", "configs/voc.py"], "such as "),
        (["train", "--config", "nowhere/voc.py"], "there is no such recipe file"),
        (["train", "--config", "configs"], "is a folder, not a recipe"),
        (["evaluate"], "arguments are required: --checkpoint"),
        (["evaluate", "--checkpiont", "x"], "did you mean --checkpoint?"),
        (["predict", "--checkpoint", "x", "--output", "y"], "arguments are required: IMAGE"),
        (["trian", "--config", RECIPE], "did you mean train?"),
        (["-V"], "did you mean --version?"),
        (["version"], "did you mean --version?"),
        (["help"], "did you mean --help?"),
        (["help", "train"], "did you mean train --help?"),
        (["train", "-c", RECIPE], f"did you mean --config {RECIPE}?"),
        (["predict", "-o", "x", "a.jpg"], "did you mean --output x?"),
        (["train", "-lr", "0.02"], "did you mean --config.train.lr=0.02?"),
        (["frobnicate"], "use one of train, evaluate, predict"),
        (["convert", "form-pytorch"], "did you mean convert from-pytorch?"),
        (["convert", "to-pytorch", "--checkpoint", "x"], "arguments are required: --output"),
    ],
)
def test_wrong_command_line_is_told_in_one_line_with_advice(call, argv, advice):
    code, out, err = call(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert advice in err


def test_recipe_that_raises_is_told_in_one_line(call, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("raise RuntimeError('first line\\nsecond line')")
    code, out, err = call("train", "--config", recipe)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {recipe}, line 1: fails with RuntimeError: first line - ")
    assert err.count("\n") == 1


def test_missing_data_is_an_error_of_the_data(call, tmp_path):
    code, out, err = call("train", "--config", RECIPE, f"--config.data.root={tmp_path}")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert f"{tmp_path}/images/train: is not a folder" in err


def test_data_that_are_wrong_name_the_doctor_who_shows_all(call, make_tree):
    root = make_tree("folder", num_val=1)
    next(root.rglob("*.png")).unlink()
    changes = [f"--config.data.root={root}", "--config.model.num_classes=4"]
    code, _, err = call("train", "--config", RECIPE, "--config.seed=1", *changes)
    assert (code, err.count("\n")) == (3, 1)
    assert err.endswith(f"; see all: deeplab doctor --config {RECIPE} {' '.join(changes)}\n")
    code, _, err = call("doctor", *err.split("deeplab doctor ")[1].split())
    assert code == 3
    code, _, err = call("train", "--config", RECIPE, *changes, "--config.data.train_split=trian")
    assert "there is no split 'trian'; there are train, val - use one that is there: " in err
    assert err.endswith(" --config.data.train_split=train\n")


@pytest.mark.parametrize(
    ("root", "names_demo"), [([], True), (["--config.data.root=nowhere"], False)]
)
def test_missing_data_of_the_quickstart_are_drawn_by_a_command(
    call, tmp_path, monkeypatch, root, names_demo
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("train", "--config", "quickstart", *root)
    assert code == 3
    assert err.endswith("; or draw it: deeplab demo --draw-only\n") == names_demo


@pytest.fixture
def parse_only(monkeypatch):
    """Returns parse_only(words), which fails if a verb refuses them; no verb does more again."""
    parse = cli.Parser.parse

    class Parsed(Exception):
        pass

    def parse_and_stop(parser, argv):
        parse(parser, argv)
        raise Parsed

    def parse_only(words):
        monkeypatch.setattr(cli.Parser, "parse", parse_and_stop)
        with pytest.raises(Parsed):
            cli.dispatch(words)

    return parse_only


@pytest.mark.parametrize(
    "argv",
    [
        ["recipes"],
        ["recipes", "--copy", "voc_r50_os8", "my own.py"],
        ["prepare", "voc", "--archives", "x", "--output", "a b"],
        ["prepare", "cache", "--config", "voc_r50_os8", "--output", "a b"],
        ["doctor", "--data", "a b"],
        ["doctor", "--data", "a b", "--write-config", "my own.py"],
        ["doctor", "--config", "quickstart", "--config.seed=1"],
        ["demo", "--draw-only"],
        ["demo"],
    ],
)
def test_next_commands_are_accepted(call, parse_only, tmp_path, monkeypatch, argv):
    from deeplab_jax.data.writers import cache, official
    from deeplab_jax.demo import __main__ as demo
    from deeplab_jax.demo import shapes
    from deeplab_jax.doctor import run

    def run_stage(*args):
        scores = '{"mean_iou": 1, "iou": [1], "best_constant_mean_iou": 0}'
        (tmp_path / "runs" / "demo" / "run" / "evaluation.json").write_text(scores)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_run_stage", run_stage)
    for module, name in ((cache, "write_cache"), (official, "prepare"), (run, "run"),
                         (shapes, "draw")):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *args: tmp_path)
    code, out, err = call(*argv)
    assert (code, err) == (0, "")
    commands = re.findall(r"^next: deeplab (.*)$", out, re.M)
    assert commands
    for command in commands:
        parse_only(shlex.split(command, comments=True))


@pytest.mark.process("one process for each verb")
@pytest.mark.parametrize("verb", ["evaluate", "predict", "report", "convert to-pytorch", "train"])
def test_missing_checkpoint_is_told_before_jax_loads(verb, make_tree, tmp_path):
    (tmp_path / "a.png").touch()
    root = make_tree("folder", num_val=1)
    flags = {
        "evaluate": ["--checkpoint", "x.pth"],
        "predict": ["--checkpoint", "x.pth", str(next(root.rglob("*.jpg"))), "--output", "out"],
        "report": ["x.pth"],
        "convert to-pytorch": ["--checkpoint", "x.pth", "--output", "y.pth"],
        "train": ["--config", "voc_r50_os16", "--config.data.dataset=folder",
                  f"--config.data.root={root}", "--config.init.backbone=x.pth"],
    }  # fmt: skip
    code = "import sys; sys.modules['jax'] = None; from deeplab_jax import cli; cli.main()"
    (tmp_path / "x.pth").touch()
    command = [sys.executable, "-c", code, *verb.split(), *flags[verb]]
    got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert got.stderr == (
        "error: x.pth: is a file, not a checkpoint directory - convert it first: deeplab convert"
        " from-pytorch --checkpoint x.pth --output weights/x\n"
    )
    assert got.returncode == 4


def test_what_the_output_cannot_show_is_replaced(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def command(argv):
        print("Stra\xdfe, \udcff")  # the second is a byte of a name that is no UTF-8
        raise DataError("\u80cc.png", "is bad", "mend it")

    with pytest.raises(SystemExit) as end:
        cli.run(command, [])
    assert end.value.code == 3
    assert out.buffer.getvalue() == b"Stra\\xdfe, \\udcff\n"
    assert err.buffer.getvalue() == b"error: \\u80cc.png: is bad - mend it\n"


@pytest.mark.process("JAX starts once a process")
@pytest.mark.parametrize(
    ("name", "fix"),
    [
        pytest.param("cuda", '".[gpu]"', marks=pytest.mark.skipif(
            os.path.exists("/dev/nvidia0"), reason="this machine has such devices")),
        ("nonsense", "unset JAX_PLATFORMS"),
    ],
)  # fmt: skip
def test_devices_that_are_not_there_are_told_in_one_line(name, fix):
    code = "import jax; from deeplab_jax import cli; cli.run(lambda argv: jax.devices(), [])"
    env = os.environ | {"JAX_PLATFORMS": name}
    command = [sys.executable, "-c", code]
    got = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (got.returncode, got.stderr.count("\n")) == (5, 1)
    assert got.stderr.startswith(f"error: JAX_PLATFORMS={name}: ")
    assert fix in got.stderr


def test_work_directory_that_is_a_file_is_told_in_one_line(call, make_tree, tmp_path):
    (tmp_path / "run").write_text("")
    root = make_tree("folder", num_val=1)
    changes = [f"--config.data.root={root}", "--config.model.num_classes=4"]
    code, out, err = call("train", "--config", RECIPE, "--workdir", tmp_path / "run", *changes)
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert err.startswith(f"error: {tmp_path}/run: ")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["convert"], ["convert", "--help"]])
def test_help_lists_the_verbs(call, argv):
    code, out, err = call(*argv)
    assert (code, err) == (0, "")
    assert all(verb in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_shows_an_example(call, verb):
    code, out, err = call(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: deeplab {verb} ")
    assert f"  deeplab {verb} " in out


def test_help_needs_no_jax():
    code = """
import runpy, sys
def run(*argv):
    sys.argv = ["deeplab", *argv[1:]]
    try:
        runpy.run_module(argv[0], run_name="__main__") if argv[0] else cli.main()
    except SystemExit as end:
        assert end.code == 0, argv
from deeplab_jax import cli
run("", "--help")
heavy = {"jax", "flax", "orbax", "grain", "numpy"}
fields = [verb for verb in cli.VERBS if verb.startswith("config ")]  # these load the schema
for verb in [verb for verb in cli.VERBS if verb not in fields] + fields:
    if verb in fields[:1]:
        assert "ml_collections" not in sys.modules
    sys.modules.pop(cli.module_of(verb), None)  # another verb may have imported it
    run(cli.module_of(verb), "--help")
    run("", *verb.split(), "--help")
assert not heavy & set(sys.modules)
"""
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert got.stderr == ""
    assert got.stdout.count("usage: deeplab") == 1 + 2 * len(cli.VERBS)


def test_console_script_is_the_same_entry():
    (script,) = entry_points(group="console_scripts", name="deeplab")
    assert script.load() is cli.main


def test_console_script_reads_the_command_line(call, monkeypatch):
    monkeypatch.setattr("sys.argv", ["deeplab", "--version"])
    code, out, err = call(command=lambda argv: cli.main())
    assert (code, err) == (0, "")
    assert out == f"deeplab_jax {__version__}, jax {jax.__version__}, {jax.device_count()} x cpu\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("No such\nbackend. (set JAX_PLATFORMS='' to choose)"), "No such backend."),
        (AssertionError(), "JAX_PLATFORMS=cuda"),
    ],
)
def test_version_tells_a_missing_backend_in_words(call, monkeypatch, error, text):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    code, out, err = call("--version")
    assert (code, err) == (0, "")
    assert out.endswith(f", jax {jax.__version__}, no devices ({text})\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("a.png", "is bad", "mend it"), 3, "error: a.png: is bad - mend it\n"),
        (DataError("a.png", "is\n  bad", "mend it"), 3, "error: a.png: is bad - mend it\n"),
        (Interrupted("train", "stopped", "repeat", 143), 143, "train: stopped - repeat\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 5, "/x/y: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 5, "/x/y: read-only file system"),
        (FileExistsError(errno.EEXIST, "File exists", "/x/y"), 5, "error: /x/y: file exists - "),
        (OSError(errno.ENOSPC, "No space left on device", "/y"), 5, "/y: the disk is full ("),
        (OSError(errno.ENOSPC, "No space left"), 5, "error: the output: its disk is full - "),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\n[tf32[9]]"),
            5,
            "error: device: out of memory (Out of memory allocating 5 bytes.) - "
            "use fewer pixels at once, in training by config.train.gradient_accumulation,"
            " config.data.crop_size or config.model.remat; `deeplab train --dry-run` says what"
            " lowers the need\n",
        ),
    ],
)
def test_every_error_of_a_user_has_its_code_and_one_line(run, error, code, text):
    got, out, err = run(error)
    assert (got, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0


def test_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda argv: 1 / 0, [])


def test_debugging_shows_the_traceback_of_an_error(call, monkeypatch):
    monkeypatch.setenv("DEEPLAB_DEBUG", "1")
    code, _, err = call("train", "--config", "nowhere.py")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("error: nowhere.py: ")


@pytest.mark.parametrize(
    ("argv", "unbuffered", "codes"),
    [
        (["--help"], "", {0}),  # all was done when it showed
        (["train", "--help"], "", {0}),
        (["--help"], "1", {141}),
        (["train", "--help"], "1", {0, 141}),  # some versions of argparse do not mind
    ],
)
def test_reader_that_leaves_ends_a_command_quietly(argv, unbuffered, codes):
    reading, writing = os.pipe()
    os.close(reading)
    got = subprocess.run(
        [sys.executable, "-c", "from deeplab_jax import cli; cli.main()", *argv],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert got.returncode in codes
    assert got.stderr == ""


def test_reader_of_errors_that_leaves_changes_no_exit_code():
    reading, writing = os.pipe()
    os.close(reading)
    got = subprocess.run(
        [sys.executable, "-c", "from deeplab_jax import cli; cli.main()", "trian"], stderr=writing
    )
    os.close(writing)
    assert got.returncode == 2


@pytest.mark.parametrize(
    ("argv", "overrides"),
    [
        (["--config.a.b", "3"], ["--config.a.b=3"]),
        (["--config.a.b=", "IMAGE"], ["--config.a.b="]),
        (["--config.a.b", "--config.c=1"], ["--config.a.b", "--config.c=1"]),
        (["--config.a.b", "-1"], ["--config.a.b=-1"]),
    ],
)
def test_override_may_stand_apart_from_its_value(argv, overrides):
    parser = cli.Parser("predict", "")
    parser.add_argument("images", nargs="*")
    args, got = parser.parse(argv)
    assert got == overrides
    assert args.images == (["IMAGE"] if "IMAGE" in argv else [])
