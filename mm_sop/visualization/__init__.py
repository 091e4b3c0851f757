"""Pictures of a run and its report."""

from mm_sop.visualization.report import write_report
from mm_sop.visualization.report_hook import ReportHook
from mm_sop.visualization.segmentation_pictures_hook import SegmentationPicturesHook

__all__ = ['ReportHook', 'SegmentationPicturesHook', 'write_report']
