"""Robustness to corruptions, occlusion and attacks."""
