"""Images by name, a million of them: an index that is kept beside their folder, and paths in a few arrays.

An index knows every folder below the one it is of, with the time at which the folder was changed last. Of a folder that
was not changed since, nothing is read again. Names lie in arrays of bytes, not in as many objects. What an index does
not notice is an image that is written anew in place, under its old name.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from tskd_yolo import files
from tskd_yolo.config import ConfigError
from tskd_yolo.data import duplicates

LOGGER = logging.getLogger("ultralytics")

SUFFIX = ".tskd-index.npz"
FORMAT = 2
"""Counts up when an index comes to hold something else."""
SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a folder shows in its time: some file systems count in seconds."""


class Folder(NamedTuple):
    """What lies in one folder, or the files of a list, whose path is empty.

    Args:
        path: Of the folder.
        changed: When, in nanoseconds; 0 where it is to be read again in any case.
        below: Names of the folders in it.
        names: Of the images, one after the other in UTF-8, ``(bytes,)``; ends: where each ends, ``(images,)``.
        sizes: Of the files in bytes, ``(images,)``; -1 for one that is not there.
        heads: A number from the first bytes of each file, ``(images,)``; 0 until it is asked for.
    """

    path: str
    changed: int
    below: list[str]
    names: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    heads: np.ndarray

    @classmethod
    def of(cls, path: str, names: Sequence[str], sizes: Sequence[int], changed: int = 0, below: Any = ()) -> Folder:
        """From names and sizes."""
        words = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        blob = np.frombuffer(b"".join(words), np.uint8)
        return cls(path, changed, list(below), blob, ends, np.array(sizes, np.int64), np.zeros(len(words), np.uint64))

    def name(self, i: int) -> str:
        """The path of an image."""
        start = int(self.ends[i - 1]) if i else 0
        return os.path.join(self.path, os.fsdecode(self.names[start : int(self.ends[i])].tobytes()))


class Paths(Sequence[str]):
    """The paths of the images in some folders, made when they are asked for.

    Args:
        folders: The folders.
        kept: The numbers of those images that count; all of them where it is missing.
    """

    def __init__(self, folders: Sequence[Folder], kept: np.ndarray | None = None) -> None:
        self.folders = list(folders)
        self._ends = np.cumsum([len(folder.ends) for folder in self.folders], dtype=np.int64)
        self.heads_read = 0
        """Of so many files the beginning was read, which the index does not know yet."""
        self.kept = np.arange(self._ends[-1] if len(self._ends) else 0) if kept is None else kept

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.file(int(self.kept[i]))

    def file(self, number: int) -> str:
        """The path of the image of this number, whether it counts or not."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[place - 1]) if place else 0
        return self.folders[place].name(number - start)

    @property
    def sizes(self) -> np.ndarray:
        """Of all files in bytes, whether they count or not."""
        return np.concatenate([np.zeros(0, np.int64), *(folder.sizes for folder in self.folders)])

    def digest(self) -> str:
        """A hash over the names and sizes of all files; where a folder lies does not count."""
        hashed = hashlib.sha256()
        for folder in self.folders:
            for array in (folder.names, folder.ends, folder.sizes):
                hashed.update(array.tobytes())
        return hashed.hexdigest()

    def without(self, numbers: Iterable[int]) -> Paths:
        """The same without some images."""
        return Paths(self.folders, np.setdiff1d(self.kept, np.fromiter(numbers, np.int64)))

    def same_as(self, others: Sequence[str]) -> dict[int, str]:
        """The numbers of images whose content is that of another file, with that file.

        Only files of equal length, beginning and middle are read whole.
        """
        lengths = {file: _size(file) for file in others}
        numbers = self.kept[np.isin(self.sizes[self.kept], np.array(list(lengths.values()), np.int64))]
        heads = {number: self._head(number) for number in numbers.tolist()} if len(numbers) else {}
        wanted: dict[int, list[str]] = {}
        for file in others if heads else ():
            wanted.setdefault(_head(file), []).append(file)
        digests: dict[str, str] = {}
        for files_ in (wanted[head] for head in {*heads.values()} & wanted.keys() - {0}):
            digests |= {digest: file for file in files_ if (digest := _digest(file))}
        found = {n: digests.get(_digest(self.file(n))) for n, head in heads.items() if head in wanted and head}
        return {number: file for number, file in found.items() if file is not None}

    def _head(self, number: int) -> int:
        place = int(np.searchsorted(self._ends, number, side="right"))
        heads, i = self.folders[place].heads, number - (int(self._ends[place - 1]) if place else 0)
        if not heads[i]:
            self.heads_read += 1
            heads[i] = _head(self.file(number))
        return int(heads[i])


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # a link to nothing: whoever reads it says so
        return -1


def _head(file: str) -> int:
    """A number from some bytes of a file; 0 for one that cannot be read."""
    try:
        return zlib.crc32(duplicates.head(file)) | 1 << 32
    except OSError:  # whoever reads the image says so
        return 0


def _digest(file: str) -> str:
    """The hash of a file's content; empty for one that cannot be read any more."""
    try:
        return files.digest(file)
    except OSError:  # whoever reads the image says so
        return ""


# Sources --------------------------------------------------------------------------------------------------------------


def is_glob(source: str) -> bool:
    """Whether a source is a pattern of paths."""
    return any(sign in source for sign in "*?[") and not os.path.exists(source)


def absolute(sources: Iterable[str], folder: str | Path = ".") -> list[str]:
    """Folders, lists and globs by their whole paths, each once; those that are relative lie in ``folder``.

    Raises:
        ConfigError: Naming those that are not there.
    """
    paths = list(dict.fromkeys(os.path.abspath(os.path.join(folder, os.path.expanduser(each))) for each in sources))
    wrong = [path for path in paths if not os.path.isdir(path) and not path.endswith(".txt") and not is_glob(path)]
    wrong += [path for path in paths if path.endswith(".txt") and not os.path.exists(path)]
    if wrong:
        raise ConfigError(
            [f"unlabelled: {path} was not found; give a folder of images, a .txt list or a glob." for path in wrong]
        )
    return paths


def images(sources: Sequence[str], *, suffixes: Iterable[str], kept: Callable[[str], Path]) -> Paths:
    """The images in folders, lists and globs; a folder that is in two of them counts once.

    Args:
        sources: As :func:`absolute` gives them.
        suffixes: Of images, without a dot.
        kept: A file for what cannot be written beside its folder, by its name.

    Raises:
        ConfigError: If there is none, one of the sources is not there, or a list is no text.
    """
    sources = absolute(sources)
    wanted = frozenset(suffixes)
    found: list[Folder] = []
    for source in sources:
        if os.path.isdir(source):
            there = {folder.path for folder in found}
            found += [folder for folder in Index(source, wanted, kept).folders if folder.path not in there]
        else:
            paths = sorted(glob.iglob(source, recursive=True)) if is_glob(source) else _listed(Path(source))
            found.append(_of_files([path for path in paths if _is_image(path, wanted)]))
    together = Paths(found)
    if not len(together):
        raise ConfigError(
            [f"unlabelled: there is no image in {', '.join(sources)}; give a folder of images, a .txt list or a glob."]
        )
    return together


def keep_heads(paths: Paths, sources: Sequence[str], *, suffixes: Iterable[str], kept: Callable[[str], Path]) -> None:
    """Writes down what :meth:`Paths.same_as` has read of files, in the indexes of the folders among the sources."""
    for source in filter(os.path.isdir, sources):
        below = [folder for folder in paths.folders if folder.path == source or folder.path.startswith(source + os.sep)]
        _write(source, below, kept, suffixes)


def _is_image(name: str, suffixes: frozenset[str]) -> bool:
    return name.rpartition(".")[2].lower() in suffixes


def _of_files(paths: Sequence[str]) -> Folder:
    return Folder.of("", paths, [_size(path) for path in paths])


def _listed(file: Path) -> list[str]:
    """The paths in a list, one a line; those that are relative lie beside the list."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError([f"unlabelled: {file} is no text in UTF-8; write it anew, one path a line."]) from error
    return [os.path.normpath(os.path.join(file.parent, line.strip())) for line in lines if line.strip()]


# The index of a folder ------------------------------------------------------------------------------------------------


class Index:
    """All images below a folder; what is hidden is left out, links to folders are followed.

    Args:
        root: The folder.
        suffixes: Of images, without a dot.
        kept: As of :func:`images`.

    Raises:
        ConfigError: If the folder cannot be read.
    """

    def __init__(self, root: str, suffixes: frozenset[str], kept: Callable[[str], Path]) -> None:
        self.read = 0
        """Folders that were read: those that were changed since the index was written."""
        self._suffixes = suffixes
        self._known = {folder.path: folder for folder in _read(root, suffixes, kept)}
        self._seen: set[tuple[int, int]] = set()
        self.folders: list[Folder] = []
        waiting = [root]
        while waiting:
            if (folder := self._folder(path := waiting.pop())) is not None:
                self.folders.append(folder)
                waiting += [os.path.join(path, name) for name in reversed(folder.below)]
        if not self.folders:
            raise ConfigError([f"unlabelled: {root} could not be read; give a folder whose images can be read."])
        if self.read or len(self._known) > len(self.folders):
            _write(root, self.folders, kept, suffixes)

    def _folder(self, path: str) -> Folder | None:
        """What lies in a folder, from the index where it was not changed; None where it was seen, or cannot be read."""
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in self._seen:  # a link back
                return None
            self._seen.add((found.st_dev, found.st_ino))
            known = self._known.get(path)
            if known is not None and known.changed == found.st_mtime_ns:
                return known
            self.read += 1
            settled = time.time_ns() - found.st_mtime_ns > SETTLED
            return self._scanned(path, found.st_mtime_ns if settled else 0)
        except OSError as error:
            LOGGER.warning(f"unlabelled: {path} could not be read ({error.strerror}) and is left out.")
            return None

    def _scanned(self, path: str, changed: int) -> Folder:
        below, found = [], []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_image(entry.name, self._suffixes):
                    found.append((entry.name, _entry_size(entry)))
                elif entry.is_dir():
                    below.append(entry.name)
        found.sort()
        return Folder.of(path, [name for name, _ in found], [size for _, size in found], changed, sorted(below))


def _entry_size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing
        return -1


def _places(root: str, kept: Callable[[str], Path]) -> tuple[Path, Path]:
    """Beside the folder, and where what cannot be written there is kept."""
    beside = Path(f"{root.rstrip(os.sep)}{SUFFIX}")
    return beside, kept(f"unlabelled-{zlib.crc32(os.fsencode(root)):08x}{SUFFIX}")


_ARRAYS = "names", "ends", "sizes", "heads"


def _read(root: str, suffixes: frozenset[str], kept: Callable[[str], Path]) -> list[Folder]:
    """The folders in an index; none where there is none, or none that can be read."""
    for place in _places(root, kept):
        try:
            with np.load(place, allow_pickle=False) as found:
                head = json.loads(found["head"].tobytes())
                arrays = {name: found[name] for name in _ARRAYS}
            if (head["format"], head["root"], head["suffixes"]) == (FORMAT, root, sorted(suffixes)):
                return _cut(head["folders"], arrays)
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            zipfile.BadZipFile,
        ):  # none, or damaged: it is made anew
            continue
    return []


def _cut(rows: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> list[Folder]:
    """Folders from rows of path, time, names of folders, images and bytes of names."""
    folders, images_, bytes_ = [], 0, 0
    for path, changed, below, count, length in rows:
        part = slice(images_, images_ + count)
        names = arrays["names"][bytes_ : bytes_ + length]
        others = (arrays[name][part] for name in _ARRAYS[1:])
        folders.append(Folder(path, changed, below, names, *others))
        images_, bytes_ = images_ + count, bytes_ + length
    if images_ != len(arrays["ends"]) or bytes_ != len(arrays["names"]):
        raise ValueError("an index that is cut short")
    return folders


def _write(root: str, folders: Sequence[Folder], kept: Callable[[str], Path], suffixes: Iterable[str]) -> None:
    """Writes an index beside its folder, or where that cannot be, which is said."""
    rows = [[f.path, f.changed, f.below, len(f.ends), len(f.names)] for f in folders]
    head = {"format": FORMAT, "root": root, "suffixes": sorted(suffixes), "folders": rows}
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.concatenate([getattr(f, name) for f in folders]) for name in _ARRAYS}
    np.savez(buffer, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    beside, elsewhere = _places(root, kept)
    try:
        files.replace(beside, buffer.getvalue())
        return
    except OSError as error:
        LOGGER.info(f"unlabelled: the index of {root} cannot lie beside it ({error.strerror}), it is in {elsewhere}.")
    try:
        elsewhere.parent.mkdir(parents=True, exist_ok=True)
        files.replace(elsewhere, buffer.getvalue())
    except OSError as error:
        LOGGER.warning(f"unlabelled: the index of {root} could not be kept ({error.strerror}): it is made every time.")
