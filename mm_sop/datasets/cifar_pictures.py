"""CIFAR for self-supervised training and its evaluation."""

import numpy as np
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.registry import DATASETS


class _Pictures:
    """Samples of CIFAR as :class:`LoadPicture` would have loaded them, with labels only if asked for."""

    def __init__(self, *args, labelled: bool = False, **kwargs) -> None:
        # Read while the parent lists the data.
        self.labelled = labelled
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the pictures, and leave out the labels where they are not asked for."""
        kept = ('img', 'gt_label') if self.labelled else ('img',)
        return [{key: item[key] for key in kept} for item in super().load_data_list()]

    def get_data_info(self, idx: int) -> dict:
        """One sample.

        Args:
            idx: Index.

        Returns:
            ``img`` (BGR, uint8, (32, 32, 3)), ``img_shape``, ``ori_shape``, ``sample_idx`` and perhaps ``gt_label``.
        """
        info = super().get_data_info(idx)
        image = np.ascontiguousarray(info['img'][..., ::-1])
        return dict(info, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


@DATASETS.register_module()
class CIFAR10Pictures(_Pictures, CIFAR10):
    """MMPretrain's CIFAR-10 for training without labels: for the pipelines that otherwise follow ``LoadPicture``.

    Pictures are BGR, as the colour transforms expect, so the data preprocessor needs ``to_rgb=True``. They are
    downloaded unless ``download=False``.

    Args:
        data_root (str): Folder of the data.
        split (str): ``'train'`` or ``'test'``. Defaults to ``'train'``.
        labelled (bool): Whether samples have a ``gt_label``, for evaluation. Defaults to False.
        **kwargs: Further arguments of MMPretrain's data set, such as ``pipeline`` and ``download``.
    """


@DATASETS.register_module()
class CIFAR100Pictures(_Pictures, CIFAR100):
    """MMPretrain's CIFAR-100 like :class:`CIFAR10Pictures`, with its 100 fine classes."""
