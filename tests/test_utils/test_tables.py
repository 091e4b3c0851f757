import re

from mm_sop.utils.tables import markdown_table


def test_cells_cannot_break_the_table():
    table = markdown_table(['a|b', 'value'], [['x | y', '1.50'], ['two\nlines', '007']])
    header, rule, *rows = table.splitlines()
    assert [len(re.findall(r'(?<!\\)\|', line)) for line in (header, rule, *rows)] == [3] * 4
    assert r'a\|b' in header and r'x \| y' in rows[0] and 'two lines' in rows[1]


def test_texts_stay_as_given():
    assert '1.50' in markdown_table(['name', 'value'], [['a', '1.50']])
    assert '0070' in markdown_table(['name', 'value'], [['0070', '1']])


def test_numbers_stand_right_unless_told_otherwise():
    assert markdown_table(['a', 'b'], [['x', '1']]).splitlines()[1].endswith(':|')
    assert markdown_table(['a', 'b'], [['x', '1']], ['left', 'left']).splitlines()[1].endswith('-|')


def test_a_table_may_have_no_rows():
    assert len(markdown_table(['a', 'b'], []).splitlines()) == 2
