"""Pictures in a given order."""

from collections.abc import Sequence
from pathlib import Path

from mmcv.transforms import Compose
from torch.utils.data import Dataset


class PictureFiles(Dataset):
    """Files that a benchmark lists, without labels.

    Args:
        paths: Files.
        pipeline: Transforms of samples with ``img_path`` and, where boxes are given, ``box``.
        boxes: One box (x1, y1, x2, y2) for every file. Defaults to None.
    """

    def __init__(
        self, paths: Sequence[str | Path], pipeline: Sequence[dict], boxes: Sequence[Sequence[float]] | None = None
    ) -> None:
        self.paths = list(paths)
        self.boxes = boxes
        self.pipeline = Compose(pipeline)

    def __len__(self) -> int:
        return len(self.paths)

    def get_data_info(self, index: int) -> dict:
        """Sample as the pipeline receives it."""
        info = dict(img_path=str(self.paths[index]))
        return info if self.boxes is None else dict(info, box=self.boxes[index])

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(self.get_data_info(index))
