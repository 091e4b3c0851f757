"""The badge shows the number of the report."""

from importlib import util
from xml.etree import ElementTree

import pytest


@pytest.mark.parametrize(('covered', 'shown'), [(93.99, '93 %'), (100.0, '100 %'), (75.0, '75 %')])
def test_percentages_are_rounded_down(repository, covered, shown):
    specification = util.spec_from_file_location('coverage_badge', repository / 'tools/dev/coverage_badge.py')
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    badge = ElementTree.fromstring(module.draw(dict(totals=dict(percent_covered=covered))))
    assert [text.text for text in badge.iter('{http://www.w3.org/2000/svg}text')] == ['coverage', shown]
