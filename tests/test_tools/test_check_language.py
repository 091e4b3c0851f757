"""The language check finds refused phrases, and nothing else."""

import subprocess
import sys
from importlib import util

import pytest


@pytest.fixture(scope='module')
def check_language(repository):
    specification = util.spec_from_file_location('check_language', repository / 'tools/dev/check_language.py')
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def find(check_language, tmp_path):
    """Return the refused phrases of a text with their lines."""
    rules = check_language.read_rules()

    def find(text):
        path = tmp_path / 'text.md'
        path.write_text(text)
        return [(finding.line, finding.text) for finding in check_language.check(path, rules)]

    return find


@pytest.mark.parametrize(
    'text',
    [
        *('A Picture', 'CIFARPictures', 'grey', 'background_colour', 'k neighbours', 'unlabelled', 'normalise'),
        *(
            'a data set',
            'drawn anew',
            'the listing',
            'read_listing(',
            'is no folder',
            'one standard error or deviation',
        ),
        *('a share', 'shares of pairs', 'masked_share', 'in small letters', 'the code of others', 'the same shares'),
    ],
)
def test_refused(find, text):
    assert len(find(text)) == 1


@pytest.mark.parametrize(
    'text',
    [
        *(
            'They share folders.',
            'shared',
            'share_memory',
            'there is no folder',
            'is no longer there',
            'is no more than',
        ),
        *('standard deviation', "record['deviation']", 'listing them takes long', 'matplotlib.figure', 'Figure 3'),
        *('<picture>', '</picture>', 'LoadPicture', 'photographic'),
        *('the figure of the paper', 'of the others', 'dataset', 'labeled', 'standardized', 'a raise', 'rising'),
    ],
)
def test_allowed(find, text):
    assert find(text) == []


def test_phrases_over_two_lines(find):
    assert find('ok\n    # This file is\n    # no image.') == [(2, 'is no')]
    assert find('| a | data\nset |') == [(1, 'data set')]


def test_rules_without_replacement_are_refused(check_language, tmp_path):
    (tmp_path / 'deny.txt').write_text('# comment\n\npicture image\n')
    with pytest.raises(ValueError, match=r'deny.txt:3: expected an expression, a tab and a replacement'):
        check_language.read_rules(tmp_path / 'deny.txt')


def test_files(check_language, tmp_path):
    for name in ('a.py', 'b.png', '.hidden/c.py', 'd/e.md'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in check_language.find_files([tmp_path])]
    assert found == ['a.py', 'd/e.md']


def test_exit_status(repository, tmp_path):
    def run(path):
        command = [sys.executable, repository / 'tools/dev/check_language.py', path]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    text = tmp_path / 'text.md'
    text.write_text('An image')
    assert run(text).returncode == 0
    text.write_text('A picture')
    result = run(text)
    assert (result.returncode, result.stdout) == (1, f'{text}:1: "picture": write image\n')
    assert run(tmp_path / 'missing').returncode == 2
