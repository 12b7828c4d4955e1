"""Finds a network's tensors in what a file holds, and says what lies around them.

Dictionaries and lists are searched at any depth for tensors with the names of a known layout, after
any prefix. What wrappers of PyTorch put within names is left out too. Work is bounded: `unpickle`
gives trees of bounded size, and a file may hold few networks.
"""

import fnmatch
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np

from convert import shown
from convert.dialects import detect, infer, is_auxiliary, recognise
from convert.keymap import DIALECTS, leaves
from deeplab_jax.errors import CheckpointError, ConfigError, clip, shorten

MAX_NETWORKS = 64  # of a file; each takes a pass over the names around it
MAX_NAME = 500  # characters of a name that is looked into
MAX_GLOBS = 10  # that a refusal proposes

Place: TypeAlias = tuple[object, ...]  # the keys and indices that lead to a dictionary
Entries: TypeAlias = dict[Any, Any]

_LEVELS = ("model", "state_dict")  # of several networks the one here is taken, in this order
_WRAPPERS = "module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
_WRAPPER = re.compile(rf"(?:^|(?<=\.))(?:(?:{_WRAPPERS})\.)+")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|teacher|averaged?|avg|shadow)(?![a-z])", re.IGNORECASE)
_ROOTS = tuple(f"layer{index}.0.conv1.weight" for index in (1, 2, 4))  # of a ResNet
_STEPS = "n_averaged"  # counter of PyTorch's AveragedModel


@dataclass(frozen=True, eq=False)
class Network:
    """Tensors of a file that have a layout's names.

    Attributes:
      place: leads to the dictionary that holds them.
      entries: that dictionary.
      prefix: begins their names there, wrappers aside.
      dialect: one of `DIALECTS`.
      keys: the dictionary's key of each name, without prefix and wrappers; also of unknown names.
      known: those of the keys that the layout has.
      needed: those of them that cannot be done without: no counters, no auxiliary head.
      missing: how many of the needed ones are not there.
    """

    place: Place
    entries: Entries
    prefix: str
    dialect: str
    keys: dict[str, str]
    known: set[str]
    needed: set[str]
    missing: int

    @property
    def name(self) -> str:
        """How `--level` calls it."""
        parts = [*map(_shown, self.place), *([self.prefix.rstrip(".")] if self.prefix else [])]
        return ".".join(parts) or "."


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """A network's tensors, and what else there is.

    Attributes:
      tensors: by name, in the file's order, without prefix; those left out on request are not here.
      keys: the file's name of each.
      others: tensors beside them that are no part of the network, by the file's name.
      beside: what lies around the dictionaries that lead to them, by name.
      notes: lines that tell what was unwrapped and left out.
    """

    tensors: dict[str, np.ndarray]
    keys: dict[str, str]
    others: dict[str, np.ndarray]
    beside: dict[object, object]
    notes: list[str]


def unwrap(obj: object, path: str, level: str = "", drops: Sequence[str] = ()) -> Unwrapped:
    """Returns the tensors of the network in what the file `path` holds.

    Args:
      obj: as `pth.read_weights` returns it.
      path: names the file in errors.
      level: name of the network to take; "" takes the only complete one. Of several it takes the
        one under "model" or "state_dict", then one with a head, then one whose name tells of no
        average (EMA, teacher).
      drops: patterns of names to leave out.

    Raises:
      CheckpointError: there is no network, or several that are equals, or entries beside its
        tensors are no tensors.
      ConfigError: `level` or a pattern names nothing, or a pattern a tensor that is needed.
    """
    networks: list[Network] = []
    for link, entries in _dictionaries(obj):
        networks += _networks(link, entries, path, drops, MAX_NETWORKS - len(networks))
    if not networks:
        _fail(obj, path)
    chosen, rivals = _choose(networks, obj, path, level)
    dropped, notes = _drop(chosen, drops)
    elsewhere = {key for rival in rivals for key in _claimed(rival, chosen.place)} - chosen.known
    entries = {k: v for k, v in chosen.entries.items() if k not in dropped and k not in elsewhere}
    steps = [key for key, value in entries.items() if _counts_steps(key, value)]
    for key in steps:
        del entries[key]
    if steps:
        names = shorten(map(shown, steps))
        notes.append(f"left out: {names}, which counts the steps of an averaged model")
    _refuse_others(entries, chosen.known, path)
    keys = {name: key for name, key in chosen.keys.items() if key in entries}
    tensors = {name: entries.pop(key) for name, key in keys.items()}
    lines = [*_tell_place(chosen, rivals), *_tell_names(chosen, keys), *notes]
    return Unwrapped(tensors, keys, entries, _around(obj, chosen.place), lines)


def drop_flags(others: Sequence[str], kept: Collection[str]) -> tuple[str, str]:
    """Returns names in groups with their counts, and the flags that leave them out, not `kept`."""
    groups = Counter(_globs(others, kept))
    counts: list[str] = []
    flags: list[str] = []
    length = 0
    for glob, count in groups.most_common(MAX_GLOBS):
        length += len(glob)
        if length > 200 and flags:
            break
        counts.append(f"{count} of `{glob}`")
        flags.append(f"--drop {shlex.quote(glob)}")
    more = [f"... ({len(groups) - len(flags)} more)"] if len(groups) > len(flags) else []
    return ", ".join(counts + more), " ".join(flags + more)


def _dictionaries(obj: object) -> Iterator[tuple[Any, Entries]]:
    """Yields every dictionary that holds tensors, in the file's order, and a link to it.

    A link is (the link to what holds it, its key there), and None at the top.
    """
    waiting: list[tuple[Any, object]] = [(None, obj)]
    while waiting:
        link, item = waiting.pop()
        pairs: Iterable[tuple[object, object]] = ()
        if isinstance(item, dict):
            pairs = item.items()
            if any(isinstance(value, np.ndarray) for value in item.values()):
                yield link, item
        elif isinstance(item, list | tuple):
            pairs = enumerate(item)
        inner = [pair for pair in pairs if isinstance(pair[1], dict | list | tuple)]
        waiting += [((link, key), value) for key, value in reversed(inner)]


def _networks(
    link: Any, entries: Entries, path: str, drops: Sequence[str], left: int
) -> list[Network]:
    """Returns the networks in one dictionary, at most `left`."""
    keys = [k for k, v in entries.items() if isinstance(k, str) and isinstance(v, np.ndarray)]
    names = {key if len(key) > MAX_NAME else _WRAPPER.sub("", key): key for key in keys}
    if len(names) < len(keys):  # with and without a wrapper
        names = {key: key for key in keys}
    roots = {
        name.removesuffix(root): None for name in names for root in _ROOTS if name.endswith(root)
    }
    if not roots and (dialect := recognise(names)):  # with others' names for the stages
        roots = {DIALECTS[dialect].prefix: None}
    if len(roots) > left:
        raise CheckpointError(path, f"holds more than {MAX_NETWORKS} networks", "save one of them")
    place: list[object] = []
    while link and roots:
        link, key = link
        place.insert(0, key)
    found = [_network(tuple(place), entries, names, root, path, drops) for root in roots]
    return [network for network in found if network]


def _network(
    place: Place, entries: Entries, names: Mapping[str, str], root: str, path: str,
    drops: Sequence[str],
) -> Network | None:  # fmt: skip
    """Returns the network whose backbone's names begin with `root`, else the backbone."""

    def at(prefix: str, of: str, inner: str = "") -> Network | None:
        whole = f"{prefix}{of}{inner}"  # the names of the backbone, which `inner` wraps
        keys = {
            of + n.removeprefix(whole) if n.startswith(whole) else n.removeprefix(prefix): k
            for n, k in names.items() if n.startswith(prefix)
        }  # fmt: skip
        dialect = recognise(keys)
        if not dialect or DIALECTS[dialect].prefix != of:
            return None
        depth = infer({name: entries[key].shape for name, key in keys.items()}, dialect).depth
        table = list(leaves(depth, dialect))
        known = {keys[key] for _, _, key in table if key in keys}
        known |= {keys[key] for key in DIALECTS[dialect].drops if key in keys}
        needed = [key for kind, of, key in table if kind != "counters" and not is_auxiliary(of)]
        there = {keys[key] for key in needed if key in keys}
        return Network(
            place, entries, prefix, dialect, keys, known, there, len(needed) - len(there)
        )

    network = None
    for of in [spec.prefix for spec in DIALECTS.values() if spec.heads]:
        before, found, inner = root.rpartition(of)
        if found and (not before or before.endswith(".") or not inner):
            network = network or at(before, of, inner)
    if network and not network.missing:
        return network
    patterns = [_pattern(glob) for glob in drops]

    def is_dropped(key: str) -> bool:
        return any(pattern.match(key) for pattern in patterns)

    if root.endswith("encoder."):
        base = root.removesuffix("encoder.")
        others = [name for name, key in names.items() if not is_dropped(key)]
        if any(name.startswith(f"{base}segmentation_head.") for name in others):
            detect([name.removeprefix(base) for name in others], path)  # raises
    backbone = at(root, "")
    if network and backbone and not backbone.missing:
        rest = set(network.keys.values()) - backbone.known
        return backbone if all(map(is_dropped, rest)) else network
    return network or backbone


def _choose(
    networks: list[Network], obj: object, path: str, level: str
) -> tuple[Network, list[Network]]:
    """Returns the network to take, and the other complete ones."""
    complete = [network for network in networks if not network.missing]
    pool = complete or networks
    names = [f"--level {shlex.quote(network.name)}" for network in pool]
    if level:
        pool = [network for network in networks if network.name == level][:1]
        if not pool:
            what = f"{clip(level)!r} is no network in {path}"
            raise ConfigError("--level", what, f"give {' or '.join(names[:MAX_GLOBS])}")
    usual = _descend(obj)[0]
    for is_preferred in (
        lambda network: network.place == usual,
        lambda network: DIALECTS[network.dialect].heads,
        lambda network: not _AVERAGED.search(network.name),
    ):
        pool = [network for network in pool if is_preferred(network)] or pool
    if len(pool) > 1 and complete:
        what = f"holds {len(complete)} networks, and nothing tells which is meant"
        raise CheckpointError(path, what, f"give {' or '.join(names[:MAX_GLOBS])}")
    chosen = min(pool, key=lambda network: network.missing)
    return chosen, [network for network in complete if network is not chosen]


def _descend(obj: object) -> tuple[Place, object]:
    """Returns what lies under "model" and "state_dict", one within the other, and its place."""
    place: Place = ()
    while isinstance(obj, dict):
        found = [name for name in _LEVELS if isinstance(obj.get(name), dict)]
        if not found:
            break
        name = next((name for name in found if obj[name]), found[0])  # not empty, if any is
        place, obj = (*place, name), obj[name]
    return place, obj


def _around(obj: object, place: Place) -> dict[object, object]:
    """Returns what else lies in the dictionaries that lead to a place, by name."""
    beside: dict[object, object] = {}
    for key in place:
        if isinstance(obj, dict):
            beside |= {name: value for name, value in obj.items() if name != key}
        obj = obj[key]  # type: ignore[index]
    return beside


def _claimed(rival: Network, place: Place) -> Collection[object]:
    """Returns the keys of the dictionary at a place that are, or lead to, another network."""
    if rival.place == place:
        return rival.known
    return rival.place[len(place) :][:1] if rival.place[: len(place)] == place else ()


def _fail(obj: object, path: str) -> NoReturn:
    """Says why a file holds no network."""
    _, level = _descend(obj)
    fix = f"save the state dict alone, or under one of: {', '.join(_LEVELS)}"
    if not isinstance(level, dict) or not level:
        kind = "nothing" if isinstance(level, dict) else f"a {type(level).__name__}"
        raise CheckpointError(path, f"holds {kind}, not a state dict", fix)
    best: list[str] = []
    for _, entries in _dictionaries(level):
        names = [k for k, v in entries.items() if isinstance(k, str) and isinstance(v, np.ndarray)]
        if entries is level or any(name.endswith(".weight") for name in names):
            best = max(best, names, key=len)
    if best:
        detect(best, path)  # raises: nothing was found in them
    strange = shorten(map(_shown, level))
    what = f"holds no state dict: {len(level)} of {len(level)} entries are no named tensors"
    raise CheckpointError(path, f"{what} ({strange})", fix)


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))


def _drop(chosen: Network, drops: Sequence[str]) -> tuple[set[object], list[str]]:
    """Returns the keys that the patterns leave out, and a line for each pattern."""
    names = {key: name for name, key in chosen.keys.items()}
    dropped: set[object] = set()
    notes = []
    for glob in drops:
        match = _pattern(glob).match
        hits = {k for k in chosen.entries if match(str(k)) or match(names.get(k, str(k)))}
        if not hits:
            what = f"`{glob}` matches none of the {len(chosen.entries)} names"
            raise ConfigError("--drop", what, "leave it out, or correct it: * stands for any text")
        needed = hits & chosen.needed
        if needed:
            what = f"`{glob}` would leave out {len(needed)} tensors that the network needs"
            fix = "give a pattern that leaves them in"
            raise ConfigError("--drop", f"{what} ({shorten(map(shown, needed), 3)})", fix)
        dropped |= hits
        notes.append(f"dropped {len(hits)} of `{glob}`")
    return dropped, notes


def _counts_steps(key: object, value: object) -> bool:
    """Tells whether an entry is the counter of PyTorch's AveragedModel."""
    is_number = isinstance(value, int) or (isinstance(value, np.ndarray) and not value.ndim)
    return isinstance(key, str) and key.rpartition(".")[2] == _STEPS and is_number


def _refuse_others(entries: Entries, known: Collection[str], path: str) -> None:
    """Refuses entries beside the tensors that are no named tensors."""
    tensors = [k for k, v in entries.items() if isinstance(k, str) and isinstance(v, np.ndarray)]
    strange = [str(key) for key in entries.keys() - set(tensors)]
    if strange:
        what = f"{len(strange)} of {len(entries)} entries of its state dict are no named tensors"
        _, flags = drop_flags(sorted(strange), known)
        fix = f"leave them out: {flags}"
        raise CheckpointError(path, f"{what} ({shorten(map(shown, strange), 5)})", fix)


def _tell_place(chosen: Network, rivals: Sequence[Network]) -> Iterator[str]:
    """Yields a line about where the network was, and which others there are."""
    if not chosen.place and not rivals:
        return
    line = "taken from ckpt" + "".join(
        f"[{key}]" if isinstance(key, int) else f"['{_shown(key)}']" for key in chosen.place
    )
    if rivals and chosen.prefix:
        line += f", names that begin with {shown(chosen.prefix)}"
    if rivals:
        flags = [f"--level {shlex.quote(rival.name)}" for rival in rivals]
        line += f"; also there, and not taken: {shorten(flags, 5)}"
    yield line


def _tell_names(chosen: Network, keys: Mapping[str, str]) -> Iterator[str]:
    """Yields a line for each prefix that was left out of names, and one for parts within."""
    used = {name: key for name, key in keys.items() if key in chosen.known}
    ends = {name: key.removesuffix(name) for name, key in used.items() if key.endswith(name)}
    for prefix, count in Counter(ends.values()).items():
        if prefix:
            yield f"prefix {shown(prefix)} left out of {count} names"
    inner = [name for name in used if name not in ends]
    if inner:
        example = f"{shown(used[inner[0]])} is {shown(inner[0])}"
        yield f"wrappers left out of {len(inner)} names, such as: {example}"


def _globs(others: Iterable[str], kept: Collection[str]) -> Iterator[str]:
    """Yields for each name a pattern that matches it and none of `kept`."""
    parts = [key.split(".") for key in kept]
    starts = {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
    ends = {part[-1] for part in parts}
    others = list(others)
    lasts = Counter(key[-MAX_NAME:].rpartition(".")[2] for key in others)
    words = Counter(key[:MAX_NAME].partition("_")[0] for key in others)
    kept_words = {key.partition("_")[0] for key in kept}
    for key in others:
        places = [match.start() for match in re.finditer(r"\.", key[:MAX_NAME])]
        start = next((place for place in places if key[:place] not in starts), 0)
        word, has_more, _ = key[:MAX_NAME].partition("_")
        last = key[-MAX_NAME:].rpartition(".")[2]
        if start:
            yield _quoted(key[:start]) + ".*"
        elif places and last not in ends and lasts[last] > 1:
            yield "*." + _quoted(last)
        elif has_more and words[word] > 1 and word not in kept_words:
            yield _quoted(word) + "_*"
        elif len(key) > 60:
            yield _quoted(key[:60]) + "*"
        else:
            yield _quoted(key)


def _quoted(text: str) -> str:
    """Returns a pattern for a text, without what cannot be printed."""
    text = re.sub(r"([*?[])", r"[\1]", text)
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text)


def _shown(key: object) -> str:
    return shown(key if isinstance(key, str) else str(key))
