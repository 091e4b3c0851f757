"""What the classification protocols share: labels, subsets of them, scores and confusion."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean, stdev

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from torch import Tensor

from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.protocol import EvaluationContext, Score
from mm_sop.evaluation.sources import class_names, draw_per_class, find_subset_lists, read_subset_list
from mm_sop.evaluation.uncertainty import standard_error
from mm_sop.visualization.evaluation_charts import confusion_chart, scores_chart
from mm_sop.visualization.page import Chart


def class_labels(dataset: BaseDataset) -> Tensor:
    """Class of every picture, int64, (N,).

    Raises:
        ValueError: The data set has no labels.
    """
    labels = read_labels(dataset, 'class')
    if labels is None:
        raise ValueError(f'{dataset.data_root} has pictures without a class')
    return torch.from_numpy(labels)


def test_sets(data: Mapping) -> dict[str, BaseDataset]:
    """All data sets but the one for training."""
    return {name: dataset for name, dataset in data.items() if name != 'train'}


def score_accuracy(correct: np.ndarray, dataset: BaseDataset, train: BaseDataset) -> Score:
    """Accuracy with its standard error.

    Args:
        correct: Whether each prediction is right, bool, (n,).
        dataset: The data set that was classified.
        train: The data set that was learnt from.

    Returns:
        The error is over objects where they are known and not in the training set, else over pictures.
    """
    identities, known = read_labels(dataset, 'identity'), read_labels(train, 'identity')
    is_unseen = identities is not None and known is not None and not np.isin(identities, known).any()
    return Score(float(correct.mean()), standard_error(correct, identities if is_unseen else None))


def score_tries(accuracies: Sequence[float]) -> Score:
    """Mean and deviation over repeated tries; a single try has no deviation."""
    return Score(mean(accuracies), stdev(accuracies) if len(accuracies) > 1 else None)


def label_subsets(
    context: EvaluationContext, train: BaseDataset, shares: Sequence[float], shots: Sequence[int], tries: int
) -> dict[str, list[np.ndarray]]:
    """Choose few labels: SimCLR's lists where they lie with the data, else drawn from every class.

    Args:
        context: What the evaluation runs with.
        train: Labelled pictures.
        shares: Shares of the labels, in (0, 1).
        shots: Numbers of pictures of each class.
        tries: How often is drawn.

    Returns:
        Rows of every try by ``1%``, ``10%``, ``1 shot`` and so on, the fewest labels first; one try for a list.
    """
    labels, lists = class_labels(train).numpy(), find_subset_lists(context.data)
    subsets = {}
    for count in (*shares, *shots):
        name = f'{count} shot' if isinstance(count, int) else f'{100 * count:g}%'
        if name in lists:
            subsets[name] = [read_subset_list(lists[name], train)]
        else:
            generator = np.random.default_rng(context.seed)
            subsets[name] = [draw_per_class(labels, count, generator) for _ in range(tries)]
    return dict(sorted(subsets.items(), key=lambda item: len(item[1][0])))


def describe_subsets(context: EvaluationContext, subsets: Mapping[str, Sequence[np.ndarray]]) -> dict:
    """Number of labels, tries and origin of :func:`label_subsets`, for a card."""
    lists = find_subset_lists(context.data)
    return {
        name: dict(labels=len(tries[0]), tries=len(tries), drawn='by list' if name in lists else 'per class')
        for name, tries in subsets.items()
    }


def name_few_scores(scores: Mapping[tuple[str, str], Score]) -> dict[str, Score]:
    """Names of scores for a result, by data set and subset of the labels, the last first."""
    return {f'{name}_class_{subset.replace(" ", "_")}': score for (name, subset), score in reversed(scores.items())}


def few_labels_picture(scores: Mapping[str, Mapping[tuple[str, str], Score]], title: str) -> Chart:
    """Chart of accuracies over the number of labels.

    Args:
        scores: Accuracies by title of a panel, and by line and subset of the labels.
        title: What classifies.
    """
    panels = {panel: {} for panel in scores}
    for panel, lines in panels.items():
        for (name, subset), score in scores[panel].items():
            lines.setdefault(name, {})[subset] = (score.value, score.error)
    draw = partial(scores_chart, panels, 'labels')
    return Chart.drawn('few_labels', draw, f'{title}: accuracy by the number of labels, with the deviation over draws.')


def confusion_picture(predicted: np.ndarray, labels: np.ndarray, dataset: BaseDataset, title: str, name: str) -> Chart:
    """Chart of the predicted classes of every true class.

    Args:
        predicted: Predicted classes, (n,).
        labels: True classes, (n,).
        dataset: Data set with the names of the classes.
        title: What is classified.
        name: Name of the picture.
    """
    classes = class_names(dataset)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    draw = partial(confusion_chart, matrix, classes, title)
    return Chart.drawn(name, draw, f'{title}: shares of the predicted classes for every true class.')
