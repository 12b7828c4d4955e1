"""What a flag that does not exist is meant to be: a flag of the verb, or a field of the recipe."""

import difflib
from collections.abc import Collection

from deeplab_jax.config.catalogue import called, normalized, suggest
from deeplab_jax.config.checks import as_text
from deeplab_jax.config.recipe import parse_value
from deeplab_jax.config.schema import fields
from deeplab_jax.errors import ConfigError

_DEVICES = """accelerator cpu cuda device device_id device_ids devices gpu gpu_id gpu_ids gpus n_gpu
 ngpu num_gpus platform tpu tpus"""
_RESUME = "auto_resume continue resume resume_from restart"
_IMAGES = "file files folder image images img imgs input inputs source"
# Verbs that a network is given to, and the fields that they read.
_READERS = ("deeplab evaluate", "deeplab predict", "deeplab report")
_OF_A_RUN = ("deeplab report", "deeplab goodput", "deeplab reproduce")  # which has no flag
_READ = ("data.", "eval.", "model.dtype")
_EXAMPLES = {"model.dtype": "bfloat16", "init.backbone": "DIR", "init.checkpoint": "DIR",
             "data.root": "DIR", "train.ema_half_life": "STEPS",
             "train.warmup_steps": "STEPS"}  # fmt: skip
# What other tools call a flag; the verb's own are tried in this order.
_FLAGS = {
    "--config": "cfg cfg_file conf config_file recipe yaml",
    "--checkpoint": "ckpt checkpoint_path load load_from model model_path pretrained pth weights",
    "--data": "data_dir data_path data_root dataset folder images path root",
    "--workdir": "dest dir exp_dir log_dir logdir model_dir out out_dir output output_dir project"
    " results run_dir save_dir save_path train_dir work_dir",
    "--output": "dest out out_dir out_path output_dir output_path project results save save_dir"
    " save_path show_dir work_dir workdir",
    "--json": "metrics output_json save_json",
    "--step": "best checkpoint_step epoch iteration",
    "--force": "exist_ok overwrite yes",
    "--write-config": "output recipe write_recipe",
    "--dry-run": "check simulate",
}


def unknown_flag(name: str, value: str, prog: str, flags: Collection[str]) -> ConfigError:
    """Returns the error for a flag that a verb does not have.

    Args:
      name: such as "--lr" or "-c".
      value: what follows it; "" without one.
      prog: the command, such as "deeplab train".
      flags: the verb's own flags; "--config.x" among them where it takes fields.
    """
    word, what = normalized(name), "there is no such argument"
    if word in _DEVICES.split():
        what += ": devices are found automatically"
        fix = "leave it out; CUDA_VISIBLE_DEVICES=0 or JAX_PLATFORMS=cpu before the command"
        return ConfigError(name, what, f"{fix} restricts them")
    if word in _RESUME.split() and "--workdir" in flags:
        fix = "leave it out: the same command with the same --workdir continues the run"
        return ConfigError(name, what, fix)
    if word in _IMAGES.split() and prog == "deeplab predict":
        fix = f"name images without a flag: {prog} --checkpoint DIR {value or 'IMAGE'} --output out"
        return ConfigError(name, what, fix)
    if prog in _OF_A_RUN and word in f"workdir checkpoint {_FLAGS['--checkpoint']}".split():
        return ConfigError(name, what, f"name the run without a flag: {prog} {value or 'DIR'}")
    if len(name) == 2:  # a letter alone
        for flag in flags:
            if flag.startswith(f"-{name}"):
                return ConfigError(name, what, f"did you mean {f'{flag} {value}'.strip()}?")
    for flag in flags:
        if word in _FLAGS.get(flag, "").split():
            given = f" {value}" if value and flag not in ("--dry-run", "--force") else ""
            return ConfigError(name, what, f"did you mean {flag}{given}?")
    names = [key for key in fields() if prog not in _READERS or key.startswith(_READ)]
    key = called(word, names) if "--config.x" in flags else None
    close = difflib.get_close_matches(f"--{word.replace('_', '-')}", flags, 1, 0.7)
    if close and not key:
        return ConfigError(name, what, f"did you mean {close[0]}?")
    if "--config.x" in flags and (key := key or suggest(word, names)):
        has_other_unit = "epoch" in word and "epoch" not in key
        given = _fitting(key, "" if has_other_unit else value)
        return ConfigError(name, what, f"did you mean --config.{key}={given}?")
    return ConfigError(name, what, f"see {prog} --help")


def _fitting(key: str, text: str) -> str:
    """Returns the text, once or twice, if the field accepts that; else the field's default."""
    field = fields()[key]
    for candidate in (text, f"{text},{text}"):
        try:
            value = parse_value(key, candidate, field.default)
            if text and field.metadata["rule"].is_valid(value):
                return candidate
        except ConfigError:
            continue
    return _EXAMPLES.get(key) or as_text(field.default) or "..."
