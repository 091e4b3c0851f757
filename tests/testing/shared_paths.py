"""What a worker process sees of lists of paths; importable by spawned processes."""

import mmap

import numpy as np


class SharedPaths:
    """The paths of each of several datasets, and whether their memory is a file's."""

    def __init__(self, datasets):
        self.datasets = datasets

    def __len__(self):
        return len(self.datasets)

    def __getitem__(self, index):
        paths = self.datasets[index].paths
        source = paths.data
        while isinstance(source, np.ndarray):
            source = source.base
        return list(paths), isinstance(getattr(source, 'obj', source), mmap.mmap)
