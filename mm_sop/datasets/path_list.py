"""Millions of paths in two arrays."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mm_sop.datasets.shared_arrays import SharedArray

# Paths that are copied at once, which bounds the memory for the positions of their bytes to some MB.
_CHUNK = 2**13


class PathList(Sequence[str]):
    """Paths, and columns of numbers that belong to them, without a Python object for each path.

    Args:
        data: The bytes of all paths, joined, uint8.
        ends: Position after the last byte of each path, int64, (N,).
        **columns: Arrays of N numbers.

    Example:
        >>> paths = PathList.collect(['a.jpg', 'b/c.jpg', 'd.jpg'])
        >>> paths[1], list(paths.take([2, 0]))
        ('b/c.jpg', ['d.jpg', 'a.jpg'])
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray, **columns: np.ndarray) -> None:
        self.data, self.ends = SharedArray.wrap(data), SharedArray.wrap(ends)
        self.columns = {name: SharedArray.wrap(column) for name, column in columns.items()}

    @classmethod
    def collect(cls, paths: Iterable[str]) -> 'PathList':
        """Collect paths one by one."""
        data, ends = bytearray(), array('q')
        for path in paths:
            data += os.fsencode(path)
            ends.append(len(data))
        return cls(np.frombuffer(data, np.uint8), np.frombuffer(ends, np.int64))

    @classmethod
    def from_lines(cls, lines: np.ndarray) -> 'PathList':
        """Split a text, uint8, whose lines all end with a line break."""
        data, ends, size = np.empty(len(lines), np.uint8), [np.empty(0, np.int64)], 0
        for start in range(0, len(lines), 2**24):
            block = lines[start : start + 2**24]
            is_break = block == ord('\n')
            # Each line break before a position is a byte less.
            breaks = np.flatnonzero(is_break)
            ends.append(size + breaks - np.arange(len(breaks)))
            kept = block[~is_break]
            data[size : size + len(kept)] = kept
            size += len(kept)
        return cls(data[:size], np.concatenate(ends))

    @classmethod
    def join(cls, lists: Sequence['PathList'], **columns: np.ndarray) -> 'PathList':
        """Join lists with the same columns, and add columns of all."""
        offsets = np.cumsum([0, *(len(paths.data) for paths in lists)])
        ends = [paths.ends + offset for paths, offset in zip(lists, offsets, strict=False)]
        joined = {name: np.concatenate([paths.columns[name] for paths in lists]) for name in lists[0].columns}
        return cls(np.concatenate([paths.data for paths in lists]), np.concatenate(ends), **joined, **columns)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by the names of the constructor's arguments."""
        return dict(data=self.data, ends=self.ends, **self.columns)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are taken by `take`
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _CHUNK):
            ends = self.ends[first : first + _CHUNK].tolist()
            block, offset = self.data[start : ends[-1]].tobytes(), start
            for end in ends:
                yield os.fsdecode(block[start - offset : end - offset])
                start = end

    def take(self, indices: int | Sequence[int] | np.ndarray) -> 'PathList':
        """Choose the first paths, the last ones for a negative number, or those with the given indices, in their order.

        Raises:
            IndexError: An index is out of range.
            TypeError: The indices are not integers.
        """
        if isinstance(indices, int | np.integer):
            return self._slice(slice(indices) if indices >= 0 else slice(indices, None))
        rows = np.asarray(indices)
        if rows.size and (rows.ndim != 1 or rows.dtype.kind not in 'iu'):
            raise TypeError(f'indices of images are an integer or a list of integers, got {indices!r}')
        rows = np.arange(len(self))[rows.astype(np.int64)]
        starts, stops = np.where(rows > 0, self.ends[rows - 1], 0), self.ends[rows]
        lengths = stops - starts
        ends = np.cumsum(lengths)
        data = np.empty(int(lengths.sum()), np.uint8)
        for first in range(0, len(rows), _CHUNK):
            part = slice(first, first + _CHUNK)
            begin = ends[first] - lengths[first]
            shifts = np.repeat(starts[part] - (ends[part] - lengths[part]), lengths[part])
            positions = np.arange(begin, begin + len(shifts))
            data[positions[0] : positions[-1] + 1] = self.data[positions + shifts]
        return PathList(data, ends, **{name: column[rows] for name, column in self.columns.items()})

    def _slice(self, part: slice) -> 'PathList':
        start, stop, _ = part.indices(len(self))
        first = int(self.ends[start - 1]) if start else 0
        ends = self.ends[start:stop]
        data = self.data[first : int(ends[-1]) if len(ends) else first]
        ends = ends - first if first else ends
        return PathList(data, ends, **{name: column[start:stop] for name, column in self.columns.items()})
