"""What is told of pictures beside a chosen place that it does not read, or cannot."""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from deeplab_jax.config.patterns import names_files
from deeplab_jax.data.patterns import IMAGE_SUFFIXES, Pattern, is_lossy
from deeplab_jax.doctor.findings import NAMED_OTHERWISE, Finding
from deeplab_jax.doctor.layouts import contents, naming, words
from deeplab_jax.doctor.layouts.matches import COLORED, Match, mask_tier, num_shared, parts_of
from deeplab_jax.doctor.layouts.naming import Naming
from deeplab_jax.doctor.layouts.shapes import SPLIT, Place, shown
from deeplab_jax.doctor.layouts.tree import Tree

_NO_IMAGES = {words.MASK, words.COLOR, words.OTHER, words.SENSOR, words.RESULT, words.OLD}
_MAX_FOLDERS = 4  # named in a command
_MAX_RULES = 4  # names of masks told in one pair of folders
_RANDOM = "else the split that --write-config proposes is random"


def unlabelled(
    tree: Tree, place: Place, known: Collection[str], splits: Collection[str]
) -> list[Finding]:
    """Returns what is told of folders of images that have no masks.

    Args:
      tree: the files.
      place: that is used.
      known: folders that are told otherwise, such as those of any match.
      splits: names of splits of `place` that are told otherwise.
    """
    shared = num_shared([parts_of(match.images) for match in place.matches])
    pattern = Pattern(place.images, None, IMAGE_SUFFIXES)
    usual = {contents.PHOTO, contents.look(tree.root, [m.pairs[0][0] for m in place.matches])}
    texts: dict[str, list[tuple[str, int]]] = {"warning": [], "note": []}
    holds: dict[str, str] = {}  # {series of folders: what a picture of it holds}
    for folder, names in tree.pictures.items():
        if folder in known:
            continue
        parts = parts_of(folder)
        same = num_shared([parts, parts_of(place.matches[0].images)])
        own = parts[min(same, shared) :]
        found = pattern.match(os.path.join(folder, names[0]))
        is_told = found is not None and (found.split in splits or not found.split
                                         or found.split in place.splits)  # fmt: skip
        kinds = words.kinds_of(own)
        is_other = bool(kinds & _NO_IMAGES) and not (words.IMAGE in kinds and kinds
                                                     & _NO_IMAGES <= {words.COLOR})  # fmt: skip
        is_meant = words.is_unlabelled("/".join(own))
        if is_told or (is_other and not is_meant):
            continue
        series = re.sub(r"\d+", "", folder)  # such as scenes with numbers: one is opened
        if series not in holds:
            holds[series] = contents.look(tree.root, [os.path.join(folder, names[0])])
        if holds[series] in usual:
            texts["note" if is_meant else "warning"].append((folder or ".", len(names)))
    fix = "nothing to do, if they are not to be learnt from; else add their masks"
    findings = []
    for severity, items in texts.items():
        if items:
            number, folders = sum(n for _, n in items), len(items)
            title = f"{number} image{'s' if number > 1 else ''} without masks in {folders} "
            title += f"folder{'s' if folders > 1 else ''} not used"
            lines = tuple(f"{folder}: {n} image{'s' if n > 1 else ''}" for folder, n in items)
            findings.append(Finding(severity, "layout", title, fix, lines))
    return findings


def named_otherwise(tree: Tree, place: Place) -> list[Finding]:
    """Returns what is told of images of a place whose masks follow another rule of names.

    Items are "IMAGE with MASK".
    """
    if names_files(place.images):
        return []
    used = {path for match in place.matches for pair in match.pairs for path in pair}
    by_rule: dict[Naming, list[tuple[str, str]]] = {}
    for match in dict.fromkeys(m._replace(pairs=()) for m in place.matches):
        for rule, pairs in _named_otherwise(tree, match, used):
            by_rule.setdefault(rule, []).extend(pairs)
    findings = []
    for rule, pairs in by_rule.items():
        suffix = os.path.splitext(pairs[0][1])[1]
        form = {"end": f"NAME{rule.mask}", "": "NAME"}.get(rule.place, f"{rule.mask}NAME")
        form = f"...{rule.mask}..." if rule.place == "middle" else form
        number, target = len(pairs), f"NAME{place.mask_suffix}{suffix}"
        title = f"{number} image{'s have masks' if number > 1 else ' has a mask'} named "
        title += f"{form}{suffix}, the other {place.num_pairs} {target}"
        items = tuple(f"{image} with {mask}" for image, mask in pairs)
        fix = _rename(tree, place, rule.mask_suffix, suffix)
        if rule.is_pattern:
            fix = f"rename these to NAME{place.mask_suffix}{suffix}, where NAME is the image's"
        findings.append(Finding("error", NAMED_OTHERWISE, title, fix, items))
    return findings


def _named_otherwise(
    tree: Tree, match: Match, used: set[str]
) -> list[tuple[Naming, list[tuple[str, str]]]]:
    one, other = (
        {PurePosixPath(name).stem: path for name in tree.pictures[folder]
         if (path := os.path.join(folder, name)) not in used}
        for folder in (match.images, match.masks)
    )  # fmt: skip
    is_one_folder = match.images == match.masks
    if is_one_folder:
        names = {os.path.join(match.images, name) for name in tree.pictures[match.images]} - used
        if any(map(is_lossy, names)):
            one = {PurePosixPath(path).stem: path for path in names if is_lossy(path)}
            other = {PurePosixPath(path).stem: path for path in names if not is_lossy(path)}
            is_one_folder = False
    found: list[tuple[Naming, list[tuple[str, str]]]] = []
    while one and other and len(found) < _MAX_RULES:
        rules = naming.pair_within({*one}) if is_one_folder else naming.pair({*one}, {*other})
        usable = [(rule, pairs) for rule, pairs in rules
                  if (rule.is_pattern or rule.mask_suffix != match.naming.mask_suffix)
                  and mask_tier(words.kinds_of((rule.mask,))) <= COLORED]  # fmt: skip
        if not usable:
            break
        rule, pairs = usable[0]
        found.append((rule, [(one[image], other[mask]) for image, mask in pairs]))
        for image, mask in pairs:
            one.pop(image), other.pop(mask)
            if is_one_folder:
                one.pop(mask, None), other.pop(image, None)
    return found


def _rename(tree: Tree, place: Place, theirs: str, suffix: str, own: str | None = None) -> str:
    """Returns the command that gives masks in the folders of a place one name.

    Masks named NAME + `theirs` get NAME + `own`; by default that of the place, where the rule that
    adds nothing to names is kept.
    """
    before, after = (theirs, place.mask_suffix if own is None else own)
    if not before:
        before, after = after, before
    folders = sorted({match.masks for match in place.matches})
    if len(folders) > _MAX_FOLDERS:
        folders = ["/".join(folders[0].split("/")[: num_shared([f.split("/") for f in folders])])]
    paths = shlex.join(str(tree.root / folder) for folder in folders)
    end, new = (shlex.quote(text + suffix) for text in (before, after))
    script = f'for f; do mv -n "$f" "${{f%{end}}}"{new}; done'
    what = f"rename to NAME{after}{suffix}: find {paths} -name {shlex.quote(f'*{before}{suffix}')}"
    return f"{what} -exec sh -c {shlex.quote(script)} - {{}} +"


def own_split(tree: Tree, place: Place, other: Place) -> Finding | None:
    """Returns what is told of another place that is the user's split for a place without one."""
    if len(place.splits) > 1 or len(other.splits) != 1:
        return None
    (split,) = other.splits
    one, two = place.settled(), other.settled()
    if place.splits:
        (used,) = place.splits
        pattern, moved = place, two
        wanted = split
        if words.is_train(used) == words.is_train(split):
            return None
    else:
        if any(words.split_text(part) for part in place.images.split("/")):
            return None  # such as train_extra
        pattern, moved = other, one
        wanted = "val" if words.is_train(split) else "train"
    if SPLIT not in pattern.images + pattern.masks:
        return None
    target = pattern._replace(images=pattern.images.replace(SPLIT, wanted),
                              masks=pattern.masks.replace(SPLIT, wanted))  # fmt: skip
    title = f"{_names(two)} is your split {split} ({other.num_pairs} pairs), and is not used: it "
    title += f"is not named like {_names(one)}"
    if moved[:2] == target[:2]:
        suffix = os.path.splitext(moved.matches[0].pairs[0][1])[1]
        own = target.mask_suffix
        fix = _rename(tree, moved if moved.mask_suffix else place, moved.mask_suffix, suffix, own)
    elif not (steps := _moves(tree, moved, target)):
        suffix = f", masks named NAME{target.mask_suffix}" if target.mask_suffix else ""
        sources, targets = (" and ".join(dict.fromkeys(map(shown, p[:2]))) for p in (moved, target))
        fix = f"lay {sources} out as {targets}{suffix}"
    else:
        fix = f"rename: cd {shlex.quote(str(tree.root))} && {steps}"
    return Finding("warning", "split", title, f"{fix}; {_RANDOM}", (two.fields(),))


def _names(place: Place) -> str:
    suffix = f" (NAME{place.mask_suffix})" if place.mask_suffix else ""
    return f"{shown(place.images)} with {shown(place.masks)}{suffix}"


def _moves(tree: Tree, moved: Place, target: Place) -> str:
    """Returns commands that move folders; "" where moving folders is not enough."""
    texts = (*moved[:2], *target[:2])
    if moved.mask_suffix != target.mask_suffix or any(set(t) & set("*{") for t in texts):
        return ""
    steps = []
    for start, end in zip(moved[:2], target[:2], strict=True):
        if start == end:
            continue
        if start == "." or end in tree.folders or end.startswith(f"{start}/"):
            return ""
        above = os.path.dirname(end)
        steps += [f"mkdir -p {shlex.quote(above)}"] * (above not in tree.folders)
        steps.append(f"mv {shlex.quote(start)} {shlex.quote(end)}")
    return " && ".join(dict.fromkeys(steps))


def of_others(
    tree: Tree, place: Place, others: Sequence[tuple[Place, bool]]
) -> tuple[list[Finding], list[Place]]:
    """Returns what is told of other places in words of their own, and these places.

    Args:
      tree: the files.
      place: that is used.
      others: each with whether it is one of copies, results and the like.
    """
    findings = named_otherwise(tree, place)
    images = {item.partition(" with ")[0] for finding in findings for item in finding.items}
    told = [other for other, _ in others
            if images.issuperset(i for match in other.matches for i, _ in match.pairs)]  # fmt: skip
    for other, is_last in others:
        if other not in told and not is_last and (found := own_split(tree, place, other)):
            findings.append(found)
            told.append(other)
    return findings, told
