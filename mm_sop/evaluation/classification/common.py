"""Subsets of the labels, scores and confusion matrices of the classification protocols."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from mmengine.dataset import BaseDataset

from mm_sop.evaluation.context import EvaluationContext, Protocol, Score
from mm_sop.evaluation.labeled_data import (
    class_labels,
    class_names,
    draw_per_class,
    find_classification,
    find_subset_lists,
    read_labels,
    read_subset_list,
)
from mm_sop.evaluation.standard_errors import standard_error


class ClassificationProtocol(Protocol):
    """Base class of protocols on a labeled training set and its test sets."""

    def find_data(self, context: EvaluationContext) -> dict[str, BaseDataset]:
        return find_classification(context.data, context.transform)


class FewLabelsProtocol(ClassificationProtocol):
    """Base class of protocols on subsets of the labels."""

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        return find_subset_lists(context.data)


def score_accuracy(correct: np.ndarray, dataset: BaseDataset, train: BaseDataset) -> Score:
    """Accuracy of predictions that are right or not, bool, (n,).

    Its standard error is over objects if they are known and unseen in training, else over images.
    """
    identities, known = read_labels(dataset, 'identity'), read_labels(train, 'identity')
    is_unseen = identities is not None and known is not None and not np.isin(identities, known).any()
    return Score(float(correct.mean()), standard_error(correct, identities if is_unseen else None))


def score_tries(accuracies: Sequence[float]) -> Score:
    """Mean and standard deviation over repeated trials; None for the std of a single one."""
    return Score(mean(accuracies), stdev(accuracies) if len(accuracies) > 1 else None)


def label_subsets(
    context: EvaluationContext, train: BaseDataset, fractions: Sequence[float], shots: Sequence[int], tries: int
) -> dict[str, list[np.ndarray]]:
    """Select few labels: by SimCLR's file lists if they are beside the data, else drawn from every class.

    Args:
        context: Data and seed.
        train: Labeled images.
        fractions: Fractions of the labels, in (0, 1).
        shots: Numbers of images of each class.
        tries: Number of draws; a file list is one.

    Returns:
        Rows of every trial by ``1%``, ``10%``, ``1 shot`` and so on, smallest subset first.
    """
    labels, lists = class_labels(train).numpy(), find_subset_lists(context.data)
    subsets = {}
    for count in (*fractions, *shots):
        name = f'{count} shot' if isinstance(count, int) else f'{100 * count:g}%'
        if name in lists:
            subsets[name] = [read_subset_list(lists[name], train)]
        else:
            generator = np.random.default_rng(context.seed)
            subsets[name] = [draw_per_class(labels, count, generator) for _ in range(tries)]
    return dict(sorted(subsets.items(), key=lambda item: len(item[1][0])))


def describe_subsets(context: EvaluationContext, subsets: Mapping[str, Sequence[np.ndarray]]) -> dict[str, dict]:
    """Describe :func:`label_subsets` for a card: number of labels, trials, and where they come from."""
    lists = find_subset_lists(context.data)
    return {
        name: dict(labels=len(tries[0]), tries=len(tries), drawn='by list' if name in lists else 'per class')
        for name, tries in subsets.items()
    }


def name_subset_scores(scores: Mapping[tuple[str, str], Score]) -> dict[str, Score]:
    """Name scores by dataset and subset of the labels, in reverse order: the largest subset first."""
    return {f'{name}_class_{subset.replace(" ", "_")}': scores[name, subset] for name, subset in reversed(list(scores))}


def chart_points(scores: Mapping[tuple[str, str], Score]) -> dict[str, dict[str, tuple]]:
    """Value and error by line and position on the axis, from scores by both."""
    lines: dict[str, dict[str, tuple]] = {}
    for (name, position), score in scores.items():
        lines.setdefault(name, {})[position] = (score.value, score.error)
    return lines


def confusion(predicted: np.ndarray, labels: np.ndarray, dataset: BaseDataset, title: str) -> dict:
    """Confusion matrix as data of a chart, from predicted and true classes, (n,) each.

    Returns:
        ``matrix``, images by true and predicted class, (C, C); ``classes``, the dataset's names, and ``title``.
    """
    classes = class_names(dataset)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return dict(matrix=matrix, classes=classes, title=title)
