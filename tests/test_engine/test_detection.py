import os

import pytest
from mmengine.config import Config

from mm_sop.engine.detection import load_detector, summarize
from mm_sop.utils.failures import LaunchError


def test_a_pretrained_network_is_not_a_detector():
    with pytest.raises(LaunchError, match=r'iter_1\.pth does not contain a detector of MMDetection'):
        load_detector(Config(dict(default_scope='mmpretrain')), 'iter_1.pth', 'cpu')


def test_summaries_of_any_name_can_be_printed():
    name = os.fsdecode(b'bad\xe9\x1b[2J.jpg')
    assert summarize({name: [dict(**{'class': 'cup'}, score=0.5)]}) == r'bad\xe9\x1b[2J.jpg: cup 0.50'
