"""Networks within wrappers: prefixes, levels, averages, names of profilers, counters, no head."""

import itertools
import shlex
import time
import types

import jax
import numpy as np
import pth_files as made
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert import keymap
from convert.pth import read_pth, write_pth
from convert.source import read_source
from convert.unwrap import drop_flags, unwrap
from deeplab_jax import checkpoint
from deeplab_jax.errors import CheckpointError, ConfigError, DeepLabError

AUXILIARY = "auxiliary_decoder."


@pytest.fixture
def tensors(make_tensors):
    return make_tensors("sssegmentation")


def under(prefix, tensors):
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def other(tensors):
    return {key: np.asarray(value + 1) for key, value in tensors.items()}


def part(name, wrapper):
    """Wraps one module of the network, as DDP or compile do when they are given a part."""
    return lambda t: {key.replace(name, f"{name}{wrapper}"): value for key, value in t.items()}


ONE = {  # how a file wraps one network, and what is said of it
    "plain": (lambda t: t, []),
    "compiled": (lambda t: under("_orig_mod.", t), ["prefix _orig_mod. left out of 226 names"]),
    "twice": (lambda t: under("module.module.", t), ["prefix module.module. left out of 226 na"]),
    "mixed": (
        lambda t: {"model_state": under("model._orig_mod.module.", t)},
        ["taken from ckpt['model_state']", "prefix model._orig_mod.module. left out of 226 names"],
    ),
    "any word": (lambda t: under("a.b.xyz.", t), ["prefix a.b.xyz. left out of 226 names"]),
    "no point": (lambda t: under("my_", t), ["prefix my_ left out of 226 names"]),
    "backbone.module.": (lambda t: under("backbone.module.", t), ["prefix backbone.module. left"]),
    "part": (part("backbone_net.", "module."), ["wrappers left out of 132 names, such as: "]),
    "part in a part": (part("backbone_net.", "body.net."), ["wrappers left out of 132 names"]),
    "compiled part": (part("decoder.", "_orig_mod."), ["wrappers left out of "]),
    "nested": (
        lambda t: {"checkpoint": {"model": t, "epoch": 3}},
        ["taken from ckpt['checkpoint']['model']", "not read: epoch"],
    ),
    "in a list": (lambda t: {"all": [{"weights": t}]}, ["taken from ckpt['all'][0]['weights']"]),
    "DeepSpeed": (lambda t: {"module": t, "dp_world_size": 2}, ["taken from ckpt['module']"]),
    "teacher alone": (lambda t: {"teacher": t}, ["taken from ckpt['teacher']"]),
    "number": (lambda t: {7: t}, ["taken from ckpt[7]"]),
    "averaged": (
        lambda t: {"n_averaged": np.array(7), **under("module.", t)},
        ["prefix module. left out of 226 names", "left out: n_averaged, which counts"],
    ),
    "Lightning": (
        lambda t: {"state_dict": under("model.net.", t), "callbacks": {}, "loops": {"a": [1]}},
        ["prefix model.net. left out of 226 names", "not read: callbacks, loops"],
    ),
    "with its average": (
        lambda t: {"model": t, "model_ema": other(t)},
        ["taken from ckpt['model']; also there, and not taken: --level model_ema"],
    ),
    "other names": (
        lambda t: {"net": t, "ema": {"module": under("module.", other(t))}},
        ["taken from ckpt['net']; also there, and not taken: --level ema.module"],
    ),
    "student and teacher in one": (
        lambda t: {"state_dict": under("student.", t) | under("teacher.", other(t))},
        ["names that begin with student.; also there, and not taken: --level state_dict.teacher"],
    ),
    "average beside it": (
        lambda t: t | under("ema.module.", other(t)) | {"ema.n_averaged": np.array(3)},
        ["also there, and not taken: --level ema", "left out: ema.n_averaged"],
    ),
}


@pytest.mark.parametrize("name", ONE)
def test_what_only_wraps_is_left_out_and_said(tensors, name):
    wrap, texts = ONE[name]
    found = unwrap(wrap(tensors), "x.pth")
    made.assert_equal(found.tensors, tensors)
    assert not found.others
    lines = "\n".join([*found.notes, f"not read: {', '.join(map(str, found.beside))}"])
    assert all(text in lines for text in texts), lines


def test_the_command_says_what_it_unwrapped(convert, tensors):
    obj = {"net": under("model.module.", tensors), "net_ema": tensors}
    code, text, err, out = convert(obj, "--output-stride", 16)
    assert (code, err) == (0, "")
    assert "taken from ckpt['net']" in text
    assert "prefix model.module. left out of 226 names\n" in text
    assert checkpoint.latest_step(out) == 0


@pytest.mark.parametrize("dialect", ["mmsegmentation", "v1c", "torchvision"])
@pytest.mark.parametrize("prefix", ["module.", "net.backbone.", "encoder_q."])
def test_every_layout_is_found_under_a_prefix(make_tensors, dialect, prefix):
    tensors = make_tensors(dialect)
    made.assert_equal(unwrap({"a": under(prefix, tensors)}, "x.pth").tensors, tensors)


@pytest.mark.parametrize("names", [("last", "best"), ("fold.0", "fold.1")])
def test_equal_rivals_are_refused_with_the_flags_that_choose(tensors, names):
    obj = dict(zip(names, (tensors, other(tensors)), strict=True))
    with pytest.raises(CheckpointError, match="holds 2 networks") as caught:
        unwrap(obj, "x.pth")
    _, first, *_, last = shlex.split(caught.value.fix.removeprefix("give "))
    assert (first, last) == names
    made.assert_equal(unwrap(obj, "x.pth", last).tensors, other(tensors))


def test_names_with_and_without_a_wrapper_are_two_networks(tensors):
    obj = under("module.", other(tensors)) | tensors
    with pytest.raises(CheckpointError, match=r"give --level module or --level \."):
        unwrap(obj, "x.pth")
    made.assert_equal(unwrap(obj, "x.pth", ".").tensors, tensors)
    made.assert_equal(unwrap(obj, "x.pth", "module").tensors, other(tensors))


def test_unknown_level_is_told(convert, tensors):
    result = convert({"model": tensors, "ema": other(tensors)}, "--output-stride=8", "--level=best")
    made.assert_refused(result, 2, "--level: 'best' is no network in", "--level model or --level e")


def test_optimiser_under_another_name_is_read(make_run, tmp_path):
    path, obj = make_run()
    obj = {
        "model_state_dict": obj["model"],
        "optimizer_state_dict": obj["optimizer"],
        "cur_iter": 7,
    }
    write_pth(path, obj)
    source = read_source(str(path), with_optimizer=True)
    assert source.iteration == 7
    assert source.ignored == ()
    assert "optimiser's state taken from 'optimizer_state_dict', the only one there" in source.notes
    assert source.optimizer.keys() == {"state", "param_groups"}


# --- What is left out on request


def extras(tensors):
    profiled = {f"{key.rpartition('.')[0]}.total_ops": np.zeros(1) for key in tensors}
    losses = {"criterion.weight": np.ones(5), "criterion.a.b": np.ones(2), "ema_a": np.ones(1)}
    return profiled | losses | {"ema_b": np.ones(1), "odd [x]": np.ones(1)}


def test_refusal_gives_the_flags_and_they_work(convert, tensors):
    obj = {"state_dict": under("model.", tensors) | extras(under("model.", tensors))}
    result = convert(obj, "--output-stride=16")
    count = len(extras(tensors)) - 5
    texts = [f"{count} of `*.total_ops`, 2 of `criterion.*`, 2 of `ema_*`, 1 of `odd [[]x]`"]
    made.assert_refused(result, 4, *texts, max_rows=11)
    flags = shlex.split(result[2].splitlines()[-1].rpartition("network: ")[2])
    code, text, err, out = convert(obj, "--output-stride=16", *flags)
    assert (code, err) == (0, "")
    assert f"dropped {count} of `*.total_ops`\ndropped 2 of `criterion.*`\n" in text
    got = checkpoint.read_arrays(out, 0, ["params", "batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, got, keymap.to_variables(tensors, 18)[0])


@pytest.mark.parametrize(
    ("glob", "text"),
    [
        ("*.totl_ops", "`*.totl_ops` matches none of the"),
        ("decoder.*", "`decoder.*` would leave out 22 tensors that the network needs (model.deco"),
        ("*", "`*` would leave out "),
    ],
)
def test_pattern_that_leaves_out_nothing_or_too_much_is_refused(convert, tensors, glob, text):
    obj = under("model.", tensors) | extras(tensors)
    made.assert_refused(convert(obj, "--output-stride=16", "--drop", glob), 2, "--drop: ", text)


def test_entries_that_are_no_tensors_are_left_out_on_request(tensors):
    obj = tensors | {"epoch": 3, "cfg": {"a": 1}}
    with pytest.raises(CheckpointError, match=r"2 of 228 entries .*--drop cfg --drop epoch"):
        unwrap(obj, "x.pth")
    found = unwrap(obj, "x.pth", drops=["cfg", "epoch"])
    made.assert_equal(found.tensors, tensors)


def test_another_network_gives_its_backbone_on_request(make_tensors):
    tensors = make_tensors("v1c")
    heads = {"decode_head.conv.weight": np.ones(3), "auxiliary_head.x": np.ones(3)}
    obj = under("backbone.", tensors) | heads
    found = unwrap(obj, "x.pth", drops=["decode_head.*", "auxiliary_head.*"])
    made.assert_equal(found.tensors, tensors)


def test_backbone_with_an_unknown_head_is_said(convert, make_tensors, make_recipe):
    obj = under("backbone.", make_tensors("torchvision")) | {"classifier.0.weight": np.ones(3)}
    flag = "--drop 'classifier.*'"
    texts = ["holds a backbone", "1 tensors of no known head", flag]
    made.assert_refused(convert(obj, "--output-stride=16"), 2, *texts)
    made.assert_refused(convert(obj, "--config", make_recipe()), 4, *texts)
    code, text, *_ = convert(obj, "--drop", "classifier.*")
    assert (code, "prefix backbone. left out of 122 names\n" in text) == (0, True)


def test_encoder_of_another_project_is_a_backbone_on_request(convert, make_tensors):
    tensors = make_tensors("torchvision")
    obj = under("encoder.", tensors) | {"decoder.a": np.ones(3), "segmentation_head.a": np.ones(3)}
    code, _, err, _ = convert(obj)
    assert code == 4
    assert "segmentation_models.pytorch" in err
    flags = shlex.split(err.rpartition("backbone: ")[2])
    assert flags == ["--drop", "decoder.*", "--drop", "segmentation_head.*"]
    made.assert_equal(unwrap(obj, "x.pth", drops=flags[1::2]).tensors, tensors)


def test_groups_of_names_match_them_and_nothing_that_is_kept(tensors):
    names = [*extras(tensors), "backbone_net.stem.0.extra", "a\nb", "k" * 10_000]
    _, flags = drop_flags(names, tensors)
    globs = shlex.split(flags)[1::2]
    found = unwrap(tensors | dict.fromkeys(names, np.ones(1)), "x.pth", drops=globs)
    made.assert_equal(found.tensors, tensors)
    assert not found.others


# --- Counters and the auxiliary head


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "bfloat16", "i1", "i2", "i4", "u1", "u2"])
def test_counters_of_any_number_are_whole(tensors, tmp_path, convert, dtype):
    narrow = {k: v.astype(dtype) if k.endswith(keymap.COUNTER) else v for k, v in tensors.items()}
    _, counters = keymap.to_variables(narrow, 18)
    assert counters == keymap.to_variables(tensors, 18)[1]
    assert {type(count) for count in counters.values()} == {int}


def test_command_rounds_counters(convert, tensors):
    halves = {key: value.astype(np.float16) for key, value in tensors.items()}
    halves["decoder.0.depthwise_bn.num_batches_tracked"] += np.float16(0.25)
    code, text, _, out = convert(halves, "--output-stride=16")
    assert (code, "37 counters of type float16 rounded\n" in text) == (0, True)
    assert checkpoint.read_info(out).counters == keymap.to_variables(tensors, 18)[1]


@pytest.mark.parametrize("kinds", [("i8", "u1", "i2"), ("f4", "f2")])
def test_counters_of_several_types_are_read(convert, tensors, kinds):
    types = itertools.cycle(kinds)
    mixed = {k: v.astype(next(types)) if k.endswith(keymap.COUNTER) else v
             for k, v in tensors.items()}  # fmt: skip
    code, text, _, out = convert(mixed, "--output-stride=16")
    assert (code, "counters of type float16, float32 rounded\n" in text) == (0, "f4" in kinds)
    assert checkpoint.read_info(out).counters == keymap.to_variables(tensors, 18)[1]


@pytest.mark.parametrize("value", [np.float16(np.inf), np.float32(np.nan), np.int32(-1)])
def test_impossible_counters_are_left_out_on_request(convert, tensors, value):
    bad = {k: value if k.endswith(keymap.COUNTER) else v for k, v in tensors.items()}
    flags = ["--drop", f"*.{keymap.COUNTER}"]
    texts = ["37 of another shape or type - ", shlex.join(flags)]
    made.assert_refused(convert(bad, "--output-stride=16"), 4, *texts, max_rows=11)
    code, text, _, out = convert(bad, "--output-stride=16", *flags)
    assert (code, "dropped 37 of `*.num_batches_tracked`\n" in text) == (0, True)
    assert checkpoint.read_info(out).counters == {}


def test_missing_auxiliary_head_is_drawn_on_request(convert, export, tensors):
    bare = {key: value for key, value in tensors.items() if not key.startswith(AUXILIARY)}
    result = convert(bare, "--output-stride=16")
    made.assert_refused(result, 4, "8 missing, 0 unexp", "--new-auxiliary\n", max_rows=11)
    flags = ["--new-auxiliary", "--config.seed=3", "--config.model.aux_channels=7"]
    code, text, err, out = convert(bare, "--output-stride=16", *flags)
    assert (code, err) == (0, "")
    assert "auxiliary head drawn from seed 3: for training only\n" in text
    assert checkpoint.read_info(out).drawn == "auxiliary head, from seed 3"
    back = read_pth(export(out)[3])["model"]
    assert list(back) == list(tensors)
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in tensors.items()
    }
    made.assert_equal({key: back[key] for key in bare}, bare)
    assert np.ptp(back[f"{AUXILIARY}0.weight"]) > 0


def test_new_auxiliary_head_needs_the_old_one_left_out(convert, tensors):
    result = convert(tensors, "--output-stride=16", "--new-auxiliary")
    made.assert_refused(result, 2, "has 8 tensors of an auxiliary head", "--drop 'auxiliary_dec")
    drop = ["--drop", "auxiliary_decoder.*"]
    assert convert(tensors, "--output-stride=16", "--new-auxiliary", *drop)[0] == 0


def test_backbone_has_no_auxiliary_head(convert, make_tensors):
    result = convert(make_tensors("v1c"), "--new-auxiliary")
    made.assert_refused(result, 2, "--new-auxiliary: is given, and ", "is a backbone alone")


# --- Any nesting


WORDS = st.sampled_from(["module", "_orig_mod", "model", "net", "weights", "a", "backbone"])


@pytest.fixture
def network(tensors):
    """The tensors, without a long text of theirs in a failing example."""
    return types.SimpleNamespace(get=lambda: tensors)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(WORDS, max_size=4),
    st.lists(WORDS | st.integers(0, 3), max_size=5),
    st.booleans(),
    st.sets(st.sampled_from(list("xyz"))),
    st.booleans(),
)
def test_any_nesting_gives_the_tensors_or_the_flags_that_do(
    network, prefix, place, has_rival, extra, is_listed
):
    tensors = network.get()
    names = under("".join(f"{word}." for word in prefix), tensors)
    obj = names | {f"{word}.loss": np.ones(2) for word in extra}
    for word in reversed(place):
        obj = {word: [obj] if is_listed else obj, "epoch": 3}
    if has_rival:
        obj = {"first": obj, "second": {"best": other(tensors)}}
    found, refused = attempt(obj)
    if found is None:  # once more with what the refusal says
        words = shlex.split(refused.fix)
        found, _ = attempt(obj, words[words.index("--level") + 1])
    others = [key for name, key in found.keys.items() if name not in tensors] + list(found.others)
    drops = shlex.split(drop_flags(others, list(names))[1])[1::2]
    assert bool(others) == bool(extra)
    level = "" if refused is None else words[words.index("--level") + 1]
    made.assert_equal(unwrap(obj, "x.pth", level, drops).tensors, tensors)
    assert len(found.notes) >= bool(place)


def attempt(*args):
    """Returns what was found, or None, and the refusal, or None."""
    try:
        return unwrap(args[0], "x.pth", *args[1:]), None
    except DeepLabError as error:
        return None, error


def wide(tensors):
    return {f"{i}.layer1.0.conv1.weight": np.ones(1) for i in range(100_000)}


def deep(tensors):
    obj = tensors
    for _ in range(90):
        obj = {"a": obj, "b": [obj] if obj is tensors else 1}
    return obj


def many(tensors):
    empty = np.ones(0)
    return {str(i): {"layer1.0.conv1.weight": empty, "b": {"c": empty}} for i in range(50_000)}


def strange(tensors):
    extra = {"module." * 60 + f"{i}.{'x.' * 200}": np.ones(0) for i in range(20_000)}
    return tensors | extra


@pytest.mark.parametrize("make", [wide, deep, many, strange])
def test_hostile_nesting_ends_soon(tensors, make):
    obj = make(tensors)
    start = time.process_time()
    found, _ = attempt(obj)
    if found is not None:
        drop_flags([*found.keys.values(), *found.others], tensors)
    assert time.process_time() - start < 10


def test_a_pattern_is_no_riddle_for_long_names(tensors):
    obj = tensors | {"a" * 10_000: np.ones(0)}
    start = time.process_time()
    with pytest.raises(ConfigError, match="matches none"):
        unwrap(obj, "x.pth", drops=["*a*a*a*a*a*b"])
    assert time.process_time() - start < 5
