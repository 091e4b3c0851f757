"""Pages, charts and galleries: what runs and evaluations have returned, drawn.

Import the modules, of which those with charts load Matplotlib: ``from mm_sop.report.report import write_report``.
"""
