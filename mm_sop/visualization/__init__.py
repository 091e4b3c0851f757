"""Pictures of a run and its report."""

from mm_sop.visualization.report import write_report
from mm_sop.visualization.report_hook import ReportHook

__all__ = ['ReportHook', 'write_report']
