"""Pages with tables in Markdown."""

import re


def read_page(results):
    """The page beside the results of a benchmark, with cells that are not padded."""
    return re.sub(' +', ' ', results.with_suffix('.md').read_text())
