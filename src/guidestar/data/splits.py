"""Find splits: folders or files to train on beside those to measure on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

TABLE_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TRAINING = ("train", "training")
MEASURING = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def split_word(name: str) -> str:
    """Return the word in a name that names a split, in small letters; "" where there is none.

    ``train``, ``Train``, ``train2017``, ``seg_train`` and ``trainA`` give "train".
    """
    words = (word.lower() for word in _WORD.findall(name))
    return next((word for word in words if word in (*TRAINING, *MEASURING)), "")


def find_splits(
    folder: Path, files: Sequence[Path], classes: Sequence[str] = ()
) -> dict[str, Path]:
    """Return the folders of the splits of pictures: ``train/cat/1.png``, ``test/cat/2.png``.

    A folder called "train" is a split where a folder called like one to measure on lies beside it,
    and either they hold class folders, a table or captions, or all folders beside it are called
    like splits. Else it is a class, as it is where ``classes`` name them all.

    Args:
        folder: the data.
        files: the pictures below it.
        classes: names that are stated to be classes.

    Returns:
        The folders by name, those to train on first; empty where the folder is not split.
    """
    within = _folders(folder, files)
    above: tuple[str, ...] = ()
    while above in within:
        names = within[above]
        if (found := _order(names)) and _is_split(folder, above, found, names, files, classes):
            return {name: folder.joinpath(*above, name) for name in found}
        if len(names) > 1:
            break
        above = (*above, *names)
    return {}


def check_splits(folder: Path, files: Sequence[Path], classes: Sequence[str] = ()) -> None:
    """Refuse a folder of several splits, which would be mixed.

    Args:
        folder: the data.
        files: the pictures below it.
        classes: names that are stated to be classes.

    Raises:
        ValueError: there are several splits; the message gives what to write in the recipe.
    """
    if split := find_splits(folder, files, classes):
        train, test = list(split.values())[:2]
        names = ", ".join(f'"{name}"' for name in sorted(split))
        flat = f"; if they are classes, state data.classes = [{names}]"
        deep = any(file.parent not in split.values() for file in files)
        raise ValueError(
            f"{folder}: holds the splits {', '.join(split)}, which would be mixed; give them "
            f'apart: path = "{train}" and test = "{test}"{"" if deep else flat}'
        )
    for above, names in _folders(folder, files).items():
        if above and not names <= set(classes) and (found := _order(names)):
            inside = "/".join(above)
            raise ValueError(
                f"{folder}: {f'{inside}/{found[0]}'!r} and {f'{inside}/{found[-1]}'!r} are splits "
                "inside a folder, which would be mixed or become classes; put the splits above "
                "the classes (train/cat, test/cat), and give them as path and test"
            )


def check_split_files(path: Path, files: Sequence[Path]) -> None:
    """Refuse files of several splits: ``train-000.parquet`` beside ``test-000.parquet``.

    Raises:
        ValueError: there are several; the message gives a path of those to train on.
    """
    words: dict[str, Path] = {}
    for file in files:
        parts = (*file.relative_to(path).parts[:-1], file.stem)
        for word in filter(None, map(split_word, parts)):
            words.setdefault(word, file)
    if not (found := _order(set(words))):
        return
    file = words[found[0]]
    inside = file.relative_to(path).parts[0]
    start = "" if file.stem.lower().startswith(found[0]) else "*"
    nested = len(file.relative_to(path).parts) > 1
    own = path / (inside if nested else f"{start}{found[0]}*{file.suffix}")
    raise ValueError(
        f"{path}: holds the splits {', '.join(words)}, which would be mixed; give the one to "
        f'train on: path = "{own}"'
    )


def _folders(folder: Path, files: Sequence[Path]) -> Mapping[tuple[str, ...], set[str]]:
    """Return the names of the folders with pictures, by the folder that they lie in."""
    within: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parent in {file.parent for file in files}:
        parts = parent.relative_to(folder).parts
        for depth, name in enumerate(parts):
            within[parts[:depth]].add(name)
    return dict(sorted(within.items()))


def _order(names: set[str]) -> list[str]:
    """Return the names of splits, those to train on first; empty where one kind is missing."""
    words = {name: split_word(name) for name in sorted(names)}
    train = [name for name, word in words.items() if word in TRAINING]
    test = [name for name, word in words.items() if word in MEASURING]
    return [*train, *test] if train and test else []


def _is_split(
    folder: Path,
    above: tuple[str, ...],
    found: Sequence[str],
    names: set[str],
    files: Sequence[Path],
    classes: Sequence[str],
) -> bool:
    tops = [folder.joinpath(*above, name) for name in found]
    if any(file.parent not in tops and _below(file, tops) for file in files):
        return True
    if any((top / table).is_file() for top in tops for table in TABLE_FILES):
        return True
    if any(_below(file, tops) and file.with_suffix(".txt").is_file() for file in files):
        return True
    return len(found) == len(names) and not names <= set(classes)


def _below(file: Path, tops: Sequence[Path]) -> bool:
    return any(top in file.parents for top in tops)
