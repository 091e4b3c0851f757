import pytest
from mmengine.config import Config

from mm_sop.engine.launch import LaunchError
from mm_sop.evaluation.detection import load_detector


def test_a_pretrained_network_is_no_detector():
    with pytest.raises(LaunchError, match=r'iter_1\.pth holds no detector of MMDetection'):
        load_detector(Config(dict(default_scope='mmpretrain')), 'iter_1.pth', 'cpu')
