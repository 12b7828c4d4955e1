"""The fields as a table, and the field that a word of another tool or another version means."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from deeplab_jax.config.checks import as_text
from deeplab_jax.config.schema import fields

# What other tools, the literature and older versions call a field.
_COMMON = {
    "name": "experiment run_name exp_name",
    "seed": "random_seed manual_seed rng",
    "model.depth": "model.backbone model.encoder encoder arch architecture layers resnet model_name"
    " encoder_name",
    "model.output_stride": "os outstride out_stride downsample_factor",
    "model.num_classes": "classes nc n_classes num_class class_count",
    "model.atrous_rates": "dilations dilation aspp_dilations aspp_rates rates",
    "model.dropout_rate": "dropout drop_rate dropout_ratio",
    "model.dtype": "amp precision mixed_precision fp16 bf16 half bfloat16 float16 half_precision",
    "model.freeze_batch_norm": "freeze_bn frozen_bn fix_bn freeze_norm norm_eval bn_eval",
    "model.remat": "checkpointing gradient_checkpointing activation_checkpointing"
    " grad_checkpointing with_cp",
    "data.dataset": "dataset_name dataset_type",
    "data.root": "data path data_dir data_root data_path dataset_dir dataset_path dataset_root"
    " root_dir input_dir",
    "data.train_split": "training_split train_set train_list",
    "data.val_split": "validation_split eval_split test_split split val_set",
    "data.images": "img_dir image_dir images_dir image_folder",
    "data.masks": "labels label_dir mask_dir masks_dir ann_dir annotations seg_dir",
    "data.mask_suffix": "seg_map_suffix label_suffix",
    "data.ignore_values": "ignore_index ignore_label void_label void ignored_label",
    "data.class_names": "names labels_names class_list",
    "data.class_colors": "palette colors colours colormap",
    "data.class_values": "label_map class_ids mask_values label_values",
    "data.max_bad_samples": "skip_bad skip_bad_samples skip_broken skip_errors skip_corrupt"
    " ignore_errors",
    "data.crop_size": "image_size img_size imgsz img input_size size crop resolution train_size"
    " imsize height width",
    "data.resize_base": "base_size resize img_scale resize_to",
    "data.scale_range": "scale ratio_range scale_factor random_scale multi_scale_range",
    "data.num_workers": "workers n_workers num_proc dataloader_workers threads",
    "data.transforms": "augment augmentation augmentations aug augs transform train_pipeline"
    " train_transforms albumentations color_jitter colorjitter photometric photometric_distortion"
    " rotate rotation degrees random_rotate vflip vertical_flip flipud fliplr random_flip cutout"
    " random_erasing erasing copy_paste copypaste class_mix classmix blur gaussian_blur jpeg"
    " brightness contrast saturation hue hsv_h hsv_s hsv_v",
    "train.batch_size": "bs batch global_batch samples_per_gpu batch_size_per_gpu train_batch_size"
    " per_device_train_batch_size micro_batch",
    "train.gradient_accumulation": "accumulate accumulation grad_accum accumulation_steps"
    " accumulate_grad_batches gradient_accumulation_steps grad_accum_steps accum",
    "train.loss_groups": "reference_processes processes",
    "train.epochs": "max_epochs num_epochs n_epochs epoch",
    "train.steps": "max_steps max_iters iterations iters num_steps total_steps max_iter"
    " total_itrs num_iters num_train_steps iteration",
    "train.lr": "learning_rate base_lr lr0 initial_lr learningrate lr_rate init_lr peak_lr",
    "train.min_lr": "final_lr end_lr lrf eta_min lr_min",
    "train.poly_power": "power lr_power",
    "train.weight_decay": "wd weight_decay_rate l2 decay",
    "train.aux_weight": "aux_loss aux_loss_weight auxiliary auxiliary_loss aux auxiliary_weight",
    "train.on_nonfinite": "on_nan nan_policy terminate_on_nan abort_on_nan skip_nan crash_on_nan"
    " halt_on_nan",
    "train.spike_factor": "spike spike_threshold loss_spike",
    "loss.cross_entropy": "loss ce ce_weight criterion loss_type loss_name loss_fn loss_function"
    " loss_decode cross_entropy_loss",
    "loss.dice": "dice_loss dice_weight use_dice tversky",
    "loss.focal": "focal_loss focal_weight use_focal",
    "loss.lovasz": "lovasz_loss lovasz_softmax lovasz_weight use_lovasz jaccard iou_loss",
    "loss.focal_gamma": "focal_loss_gamma",
    "loss.label_smoothing": "smoothing label_smooth smooth_factor label_smoothing_factor",
    "loss.ohem_threshold": "ohem thresh ohem_thresh use_ohem hard_mining hard_example_mining"
    " online_hard_example_mining",
    "loss.ohem_min_kept": "min_kept min_kept_per_image ohem_kept n_min",
    "loss.class_weights": "class_weight weight_per_class loss_weights pos_weight",
    "loss.class_weighting": "balanced class_balance class_balancing auto_class_weights"
    " balance_classes weighting use_class_weights balanced_weights",
    "train.momentum": "beta1 b1",
    "train.optimizer": "optim optimizer_name optimizer_type opt solver",
    "train.schedule": "scheduler lr_scheduler lr_schedule lr_policy schedule_type sched lr_config"
    " param_scheduler",
    "train.step_epochs": "milestones decay_epochs lr_steps lr_milestones",
    "train.step_factor": "gamma lr_gamma decay_rate lr_decay",
    "train.warmup_steps": "warmup warmup_iters num_warmup_steps warm_up warmup_epochs warmup_ratio",
    "train.clip_norm": "clip clip_grad grad_clip gradient_clip max_grad_norm max_norm"
    " gradient_clip_val clip_grad_norm grad_clip_norm",
    "train.decay_norms": "norm_decay_mult no_decay_norms norm_weight_decay bias_decay"
    " bias_decay_mult weight_decay_norm",
    "train.head_lr_factor": "head_lr head_lr_mult lr_mult head_lr_multiplier decoder_lr"
    " lr_multiplier backbone_lr paramwise_cfg",
    "train.freeze": "frozen frozen_stages freeze_backbone freeze_at freeze_layers freeze_encoder"
    " freeze_stages",
    "train.ema_half_life": "ema ema_decay model_ema average averaging use_ema weight_averaging swa"
    " polyak model_ema_decay",
    "train.early_stop": "patience early_stopping early_stopping_patience es_patience"
    " early_stop_patience",
    "mesh.spatial": "space mesh.space spatial_partition spatial_shards model_parallel",
    "mesh.check_every_steps": "check_every replica_check",
    "mesh.check_hardware": "sdc sdc_check sdc_checker enable_sdc_checker silent_corruption",
    "eval.every_epochs": "eval_every val_interval eval_interval val_every validate_every eval_freq"
    " evaluate_every check_val_every_n_epoch val_freq",
    "eval.resize_base": "test_size eval_size val_size",
    "eval.mode": "sliding_window slide sliding test_mode",
    "eval.scales": "tta multi_scale multiscale ms test_scales",
    "eval.flip": "mirror hflip horizontal_flip test_flip",
    "checkpoint.every_steps": "save_every save_interval save_freq checkpoint_interval save_period"
    " checkpoint_every save_steps ckpt_every save_every_steps",
    "checkpoint.best": "monitor save_best best_metric metric_for_best_model key_metric"
    " best_model_metric",
    "log.every_steps": "log_every log_interval print_freq print_every logging_steps"
    " print_interval log_freq log_steps log_every_n_steps",
    "log.tensorboard": "tb use_tensorboard tensorboard_logger enable_tensorboard",
    "log.wandb": "use_wandb wandb_project wandb.project enable_wandb",
    "init.backbone": "pretrained pretrained_backbone backbone_weights imagenet encoder_weights"
    " pretrained_weights imagenet_weights",
    "init.checkpoint": "load_from finetune fine_tune init_from start_from from_checkpoint ckpt"
    " weights init_checkpoint",
    "init.head": "reset_head new_head skip_head",
}
_MEANINGS = {word: key for key, words in _COMMON.items() for word in words.split()}
# What other tools have and this one does not; a similar field would mislead.
_ABSENT = """activation device devices gpu gpus mean std sync_bn tpu"""
_FILLERS = "a an and as at by each for from in is its of on or the to with config"


class Row(NamedTuple):
    """A field as people read it.

    Attributes:
      name: in full, such as "train.lr".
      default: as written after `--config.x=`; empty for text or a list that is empty.
      unit: of its numbers; empty where they have none.
      accepted: values, in words.
      text: its meaning.
    """

    name: str
    default: str
    unit: str
    accepted: str
    text: str


def rows() -> list[Row]:
    """Returns every field, in the order of the schema."""
    return [
        Row(key, as_text(field.default), field.metadata["unit"], field.metadata["rule"].accepted,
            field.metadata["text"])
        for key, field in fields().items()
    ]  # fmt: skip


def search(word: str) -> list[Row]:
    """Returns the fields that a word is about: in their names, common names or sentences."""
    wanted = normalized(word)
    meant = suggest(wanted)
    found = [row for row in rows() if wanted in row.name or row.name == meant]
    texts = {row: f"{row.text} {row.unit} {_COMMON.get(row.name, '')}" for row in rows()}
    return found + [
        row for row, text in texts.items()
        if row not in found and any(t.startswith(wanted) for t in re.findall(r"\w+", text.lower()))
    ]  # fmt: skip


def suggest(name: str, known: Iterable[str] = ()) -> str | None:
    """Returns the field that a wrong name means, or None.

    After `called` come fields with the words of the name in their names and sentences, then
    similar spelling.

    Args:
      name: such as "train.learning_rate", "batch" or "log-every".
      known: the fields to choose from; empty: all.
    """
    names = list(known) or list(fields())
    if found := called(name, names):
        return found
    wanted = normalized(name)
    leaf = wanted.rpartition(".")[2]
    if leaf in _ABSENT.split():
        return None
    if found := _by_words(wanted, names):
        return found
    if "." in wanted and (close := difflib.get_close_matches(wanted, names, 1, 0.8)):
        return close[0]
    spelled = _meanings(names) | _leaves(names)
    close = difflib.get_close_matches(leaf, spelled, 1, 0.75)
    return spelled[close[0]] if close else None


def called(name: str, known: Iterable[str] = ()) -> str | None:
    """Returns the field of that name in any section, or with that common name; None without."""
    names = list(known) or list(fields())
    meanings, leaves, wanted = _meanings(names), _leaves(names), normalized(name)
    for word in (wanted, wanted.replace(".", "_"), wanted.rpartition(".")[2]):
        if found := meanings.get(word) or (word if word in names else leaves.get(word)):
            return found
    return None


def _meanings(names: Collection[str]) -> dict[str, str]:
    return {word: key for word, key in _MEANINGS.items() if key in names}


def _leaves(names: Sequence[str]) -> dict[str, str]:
    return {name.rpartition(".")[2]: name for name in reversed(names)}  # the first of a name


def advice(name: str, known: Iterable[str] = ()) -> str:
    """Returns the fix for a field that does not exist: the one that is meant, or the whole list."""
    if found := suggest(name, known):
        return f"did you mean config.{found}?"
    return "see all: deeplab config fields"


def normalized(name: str) -> str:
    """Returns a name of a field or flag in lower case, with "_" for "-"."""
    return name.strip().lower().lstrip("-").removeprefix("config.").replace("-", "_")


def _by_words(wanted: str, names: Iterable[str]) -> str | None:
    """Returns the field whose names and sentence have every word of a name, or None."""
    section, _, leaf = wanted.rpartition(".")
    words, scores = _words(leaf), {}
    for name in names:
        named = _words(f"{name} {_COMMON.get(name, '')}")
        text = _words(fields()[name].metadata["text"]) - named
        if words and words <= named | text and words & named:
            in_section = name.startswith(f"{section}.")
            scores[name] = len(words & named) + len(words & text) / 2 + in_section / 4
    return max(scores, key=scores.__getitem__, default=None)  # the first of equals


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - {*_FILLERS.split()}
