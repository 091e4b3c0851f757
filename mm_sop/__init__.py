"""Self-supervised visual pretraining for MMEngine, MMPretrain and MMDetection.

Importing this package registers every component into MMPretrain's registries. ``mm_sop.functional`` needs nothing
but torch: without MMPretrain the registration is left out.
"""

from importlib.util import find_spec

__version__ = '0.1.0'

if find_spec('mmpretrain') is not None:
    from mm_sop import compat

    compat.define_torchvision_operators()
    compat.silence_onedl()
    compat.leave_out_multimodal_models()
    compat.limit_opencv_threads()
    compat.keep_frozen_blocks_in_evaluation()
    compat.fix_positions_before_wrapping()
    compat.announce_configs()

    from mm_sop import datasets, engine, evaluation, models, visualization  # noqa: F401
    from mm_sop.evaluation.loading import load  # noqa: F401
