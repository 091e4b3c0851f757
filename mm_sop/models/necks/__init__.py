"""Necks."""

from mm_sop.models.necks.dino_neck import DINONeck
from mm_sop.models.necks.global_neck import GlobalNeck
from mm_sop.models.necks.mlp_neck import MLPNeck
from mm_sop.models.necks.resnet_stage import ResNetStage
from mm_sop.models.necks.simple_feature_pyramid import RescaledMaps, SimpleFeaturePyramid
from mm_sop.models.necks.sop_neck import SOPNeck

__all__ = ['DINONeck', 'GlobalNeck', 'MLPNeck', 'ResNetStage', 'RescaledMaps', 'SOPNeck', 'SimpleFeaturePyramid']
