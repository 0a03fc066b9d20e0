"""Find the images, classes and splits of a folder in any usual layout, or of a CSV file that lists them.

Decodes no image and draws no split.
"""

import csv
import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from study.config.flags import TABLES
from study.data.image_files import HIDDEN, is_hidden, list_files, reason_against
from study.data.rows import Row, Rows
from study.errors import DataError, nearest_name

VALIDATION_NAMES = ("val", "valid", "validation", "dev")
"""Names of the folder of validation images, and their names in the column split of a CSV file."""
SPLITS = {"train": "train", "test": "test", **dict.fromkeys(VALIDATION_NAMES, "val")}
"""Split of each folder's name, and of each value in the column split."""
COLUMNS = ("path", "label", "split", "group")
MISSPELT = 0.75
"""Likeness (difflib) from which on a column counts as misspelt: spilt for split, but not site."""
SHOWN = 10
"""Number of files or mistakes that an error names; it counts the others."""


@dataclass(frozen=True)
class Listing:
    """The image files of a source, before a split is drawn and before any is decoded."""

    rows: Rows
    layout: str
    """How images and splits are given, in words."""
    left_out: Counter[str]
    """Number of files that are no images of the data set, by reason."""


def is_table(source: Path) -> bool:
    """Return whether a path names a CSV file of images."""
    return source.suffix.lower() in TABLES


def list_source(source: Path) -> Listing:
    """List the images of a folder or of a CSV file.

    Raises:
        DataError: the source has no layout that is understood, or its classes, names or lines are wrong.
    """
    try:
        listing = _list_table(source) if is_table(source) else _list_folder(source)
    except OSError as error:
        raise DataError(f"{error.filename}: must be readable: {error.strerror}.") from error
    rows = () if listing.rows.is_utf8() else listing.rows
    names = {*source.parts, *(text for row in rows for text in (*row.path.parts, row.label, row.group))}
    if odd := sorted(os.fsencode(name) for name in names if not _is_utf8(name)):
        raise DataError(
            f"{source}: names must be UTF-8, but got {shorten(map(repr, odd))}. Rename the files or folders."
        )
    _check_classes(source, listing.rows)
    return listing


def shorten(items: Iterable[str], separator: str = ", ") -> str:
    """Join the first SHOWN items, and count the others."""
    every = [*items]
    more = f"{separator}and {len(every) - SHOWN:,} more" if len(every) > SHOWN else ""
    return f"{separator.join(every[:SHOWN])}{more}"


def _list_folder(root: Path) -> Listing:
    left_out: Counter[str] = Counter()
    folders, files = _list_names(root)
    splits = [name for name in folders if name in SPLITS]
    if "train" in splits and not _holds_folders(root / "train"):
        if all(name in SPLITS or is_hidden(name) for name in folders):
            raise DataError(f"{root}: train/ must hold one folder for each class, but has none.")
        splits = []  # classes of vehicles, perhaps
    if twice := [name for name in splits if SPLITS[name] == "val"][1:]:
        raise DataError(f"{root}: must hold one folder of validation images, but {twice[0]}/ stands beside others.")
    if "train" in splits:
        parts = sorted(splits, key=lambda name: ("train", "val", "test").index(SPLITS[name]))
        for name in folders:
            if name not in splits:
                reason = HIDDEN if is_hidden(name) else f"in {name}/, which is no split"
                left_out[reason] += 1 if is_hidden(name) else sum(1 for _ in list_files(root / name, lambda _: None))
        _leave_out(root, files, left_out)
        rows = Rows(row for part in parts for row in _list_classes(root / part, SPLITS[part], left_out))
        return Listing(rows, _join([f"{part}/" for part in parts]), +left_out)
    classes = [name for name in folders if not is_hidden(name)]
    _refuse_other_layouts(root, classes, files, splits)
    rows = Rows(_list_classes(root, "", left_out))
    return Listing(rows, "class folders", +left_out)


def _list_classes(folder: Path, split: str, left_out: Counter[str]) -> Iterator[Row]:
    """Yield the images in the folders of a split, one folder for each class, sorted by the class's name."""
    folders, others = _list_names(folder)
    _leave_out(folder, others, left_out)
    left_out[HIDDEN] += sum(map(is_hidden, folders))
    for name in sorted((name for name in folders if not is_hidden(name)), key=lambda name: (_normalise(name), name)):
        files = [*list_files(folder / name)]
        found = [path for path, reason in files if not reason]
        reasons = Counter(reason for _, reason in files if reason)
        if not found:
            held = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            raise DataError(f"{folder / name}: must hold an image, but has none{f' ({held})' if held else ''}.")
        left_out.update(reasons)
        yield from (Row(path, _normalise(name), split) for path in found)


def _leave_out(folder: Path, files: Sequence[str], left_out: Counter[str]) -> None:
    """Count the files that lie beside folders of classes or splits."""
    for name in files:
        left_out[reason_against(folder / name) or "image outside the class folders"] += 1


def _list_names(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, each sorted."""
    with os.scandir(folder) as entries:
        kinds = sorted((entry.name, entry.is_dir()) for entry in entries)
    return [name for name, is_folder in kinds if is_folder], [name for name, is_folder in kinds if not is_folder]


def _holds_folders(folder: Path) -> bool:
    return any(not is_hidden(name) for name in _list_names(folder)[0])


def _refuse_other_layouts(root: Path, classes: Sequence[str], files: Sequence[str], splits: Sequence[str]) -> None:
    """Raise an error for a folder that does not hold class folders, and name the nearest layout that works."""
    rule = f"{root}: must hold train/<class>/…, or one folder for each class, or be a CSV file of images"
    if splits:
        found = ", ".join(f"{name}/" for name in splits)
        raise DataError(f"{rule}, but has {found} and no train/. Name the folder of training images train/.")
    spelt = {name: nearest_name(name.lower(), [*SPLITS]) for name in classes if _holds_folders(root / name)}
    if "train" in spelt.values():
        wish = ", ".join(f"{name}/ to {near}/" for name, near in spelt.items() if near)
        raise DataError(f"{rule}, but has {', '.join(f'{name}/' for name in classes)}. Rename {wish}.")
    inside = {name: {*_list_names(root / name)[0]} for name in classes}
    if len(classes) == 1 and len(inside[classes[0]]) > 1:
        raise DataError(f"{rule}, but has only {classes[0]}/. Use --data {root / classes[0]}.")
    if classes and all(held & {*SPLITS} for held in inside.values()):
        held = min(inside[classes[0]] & {*SPLITS})
        raise DataError(f"{rule}, but has {classes[0]}/{held}/. Turn the folders round: {held}/{classes[0]}/.")
    images = [name for name in files if not reason_against(root / name)]
    if not classes:
        found = f"{len(images):,} images without folders" if images else "no folder"
        raise DataError(f"{rule}, but has {found}. Put the images of each class into a folder of its own.")


def _list_table(file: Path) -> Listing:
    """Read a CSV file with the columns path, label and, if present, split and group; collect all its mistakes."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            heading = lines.readline()
            lines.seek(0)
            separator = max(",;\t", key=heading.count)
            reader = csv.DictReader(lines, delimiter=separator, restval="")
            headings = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            names = dict(zip(headings, reader.fieldnames or (), strict=True))
            table = [
                (reader.line_num, {name: (line[names[name]] or "").strip() for name in COLUMNS if name in names})
                for line in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: must be a CSV file in UTF-8, but: {error}.") from None
    if missing := [name for name in ("path", "label") if name not in names]:
        raise DataError(
            f"{file}: must have the columns path and label, and may have split and group, but {' and '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} missing among {', '.join(names) or 'none'}."
        )
    if repeated := [name for name in COLUMNS if headings.count(name) > 1]:
        raise DataError(
            f"{file}: line 1: must name each column once, but names {_join(repeated)} several times. Rename or remove"
            " the columns that are not meant."
        )
    absent = [name for name in COLUMNS if name not in names]
    unused = [name for name in names if name and name not in COLUMNS]
    mistakes = [
        f"column {name!r}: is no column of such a file. Did you mean {near!r}? Rename it, or leave it out."
        for name in unused
        for near in difflib.get_close_matches(name, absent, n=1, cutoff=MISSPELT)
    ]
    if not table and not mistakes:
        raise DataError(f"{file}: must list images, but has a heading only. Add a line for each image.")
    rows: list[Row] = []
    seen: dict[Path, int] = {}
    for number, line in table:
        split = line.get("split", "").lower()
        forms = [file.parent / unicodedata.normalize(form, line["path"]) for form in ("NFC", "NFD")]
        path = next((form for form in (file.parent / line["path"], *forms) if form.exists()), forms[0])
        wrong = [f"{name}: must not be empty." for name in ("path", "label") if not line[name]]
        if split and split not in SPLITS:
            wrong.append(f"split: must be {', '.join(SPLITS)}, but got {split!r}.")
        if line["path"] and not path.exists():
            wrong.append(f"path: there is no file {path}.")
        elif line["path"] and seen.setdefault(path, number) != number:
            wrong.append(f"path: {line['path']} stands in line {seen[path]} already.")
        mistakes += [f"line {number}: {mistake}" for mistake in wrong]
        rows.append(Row(path, _normalise(line["label"]), SPLITS.get(split, split), _normalise(line.get("group", ""))))
    if not mistakes:
        mistakes = [*_wrong_splits(rows)]
    if mistakes:
        raise DataError("\n".join(f"{file}: {mistake}" for mistake in _first(mistakes)))
    layout = f"{file.name} with {', '.join(name for name in COLUMNS if name in names)}"
    return Listing(Rows(rows), layout + (f", without {', '.join(unused)}" if unused else ""), Counter())


def _first(mistakes: Sequence[str]) -> list[str]:
    more = [f"{len(mistakes) - SHOWN:,} more mistakes."] if len(mistakes) > SHOWN else []
    return [*mistakes[:SHOWN], *more]


def _wrong_splits(rows: Sequence[Row]) -> Iterable[str]:
    """Yield the mistakes in the given splits of a CSV file."""
    given = {row.split for row in rows}
    if given == {""}:
        return
    if "" in given:
        without = sum(not row.split for row in rows)
        yield f"split: must be given for all images or for none, but is missing for {without:,} of {len(rows):,}."
        return
    if "train" not in given:
        yield f"split: must say train for some images, but has only {', '.join(sorted(given))}."
    splits_of: dict[str, set[str]] = {}
    for row in rows:
        if row.group:
            splits_of.setdefault(row.group, set()).add(row.split)
    for group, splits in splits_of.items():
        if len(splits) > 1:
            yield f"group {group!r}: must stand in one split, but is in {_join(sorted(splits))}."


def _check_classes(source: Path, rows: Rows) -> None:
    """Check that there are two classes, and that all given splits hold the same ones."""
    classes: dict[str, set[str]] = {}
    for label, split in rows.kinds():
        classes.setdefault(split, set()).add(label)
    splits = {split: classes[split] for split in ("train", "val", "test") if split in classes}
    if len(splits) > 1:
        every = sorted(set.union(*splits.values()))
        differences = [
            f"{name!r} (not in {_join(missing)})"
            for name in every
            if (missing := [split for split, held in splits.items() if name not in held])
        ]
        if differences:
            raise DataError(f"{source}: {_join([*splits])} must hold the same classes, but got {shorten(differences)}.")
    names = sorted(set().union(*classes.values()))
    if len(names) < 2:
        raise DataError(f"{source}: must hold 2 classes or more, but got {', '.join(map(repr, names)) or 'none'}.")


def _normalise(name: str) -> str:
    """Return a name in Unicode's form NFC, in which names are equal that look equal."""
    return unicodedata.normalize("NFC", name)


def _join(words: Sequence[str]) -> str:
    """Join words as in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
