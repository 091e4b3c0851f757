"""Data sets that the report shows pictures of."""

from mmengine.config import Config
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from mm_sop.evaluation.knn_hook import find_knn_settings
from mm_sop.visualization.galleries import views_of


def build_train_dataset(config: Config) -> Dataset | None:
    """Training data set of a config, or None if it has none."""
    loader = config.get('train_dataloader')
    if not loader:
        return None
    dataset = DATASETS.build(loader['dataset'])
    if hasattr(dataset, 'set_default_seed'):
        dataset.set_default_seed(config.get('randomness', {}).get('seed') or 0)
    return dataset


def build_evaluation_datasets(config: Config, train: Dataset | None) -> tuple[Dataset, Dataset | None]:
    """Bank and unseen queries of the config's KNNHook; without one, unaugmented training pictures and None.

    Args:
        config: Config of the run.
        train: Its training data set.

    Raises:
        ValueError: If there is neither a KNNHook nor a training data set.
    """
    knn = find_knn_settings(config)
    if knn:
        queries = knn['queries']
        name = 'test' if 'test' in queries else list(queries)[-1]
        return DATASETS.build(knn['bank']), DATASETS.build(queries[name])
    if train is None:
        raise ValueError('the config has neither a KNNHook nor a train_dataloader: there are no pictures to show')
    settings = config['train_dataloader']['dataset']
    settings = dict(settings.get('dataset', settings))
    side = views_of(train[0])[0].shape[-1]
    settings['pipeline'] = [
        settings['pipeline'][0],
        dict(type='TrimLongSide'),
        dict(type='ResizeEdge', scale=side, edge='short', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=side),
        dict(type='PackInputs'),
    ]
    return DATASETS.build(settings), None
