"""Evaluation protocols; importing this module registers them."""

from mm_sop.evaluation.classification import finetune, knn, linear, logistic, transfer  # noqa: F401
from mm_sop.evaluation.dense import video  # noqa: F401
from mm_sop.evaluation.representation import clustering, locality, rank  # noqa: F401
from mm_sop.evaluation.retrieval import copy_detection, instance  # noqa: F401
from mm_sop.evaluation.robustness import robustness  # noqa: F401
