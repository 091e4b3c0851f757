"""Refuses words and phrases that the project does not use.

Usage: python tools/dev/check_language.py [FILE or FOLDER ...]

Reads ``deny_list.txt`` beside this file and prints every match with its file, line and replacement. Without arguments
all text of the checkout is read. Exits with 1 if anything was found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DENY_LIST = Path(__file__).with_name('deny_list.txt')
DEFAULT = ['mm_sop', 'tools', 'configs', 'docs', 'tests', '.github', '*.md', '*.yml', '*.toml', '*.py']
# They name the refused words.
EXEMPT = {DENY_LIST, ROOT / 'CHANGELOG.md', ROOT / 'tests/test_tools/test_check_language.py'}
SUFFIXES = {'.py', '.md', '.yml', '.yaml', '.toml', '.sh', '.txt', '.html', '.css', '.js'}


class Rule(NamedTuple):
    """What is refused, and what to write instead."""

    pattern: re.Pattern[str]
    replacement: str


class Finding(NamedTuple):
    """One refused phrase in a file."""

    path: Path
    line: int
    text: str
    replacement: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.text}": write {self.replacement}'


def read_rules(path: Path = DENY_LIST) -> list[Rule]:
    """Read lines of ``expression<TAB>replacement``; empty lines and comments (``#``) are skipped."""
    rules = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line or line.startswith('#'):
            continue
        expression, tab, replacement = line.partition('\t')
        if not tab or not replacement:
            raise ValueError(f'{path}:{number}: expected an expression, a tab and a replacement, got {line!r}')
        # \w spans underscores, so \b would overlook the words of an identifier.
        start = '' if expression.startswith('*') else r'(?<![^\W\d_])'
        end = '' if expression.endswith('*') else r'(?![^\W\d_])'
        pattern = re.compile(f'{start}(?:{expression.strip("*")}){end}', re.IGNORECASE)
        rules.append(Rule(pattern, replacement))
    return rules


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield text files in order. Hidden folders below the given ones are skipped."""
    for path in paths:
        files = sorted(path.rglob('*')) if path.is_dir() else [path]
        for file in files:
            hidden = any(part.startswith('.') for part in file.relative_to(path).parts[:-1])
            if file.suffix in SUFFIXES and file.is_file() and not hidden and file.resolve() not in EXEMPT:
                yield file


def check(path: Path, rules: Iterable[Rule]) -> list[Finding]:
    """Find refused phrases in one file, also where a phrase is broken over two lines."""
    text = path.read_text(encoding='utf-8')
    # Line breaks with their indentation and comment marks read as one space; offsets still lead to the lines.
    joined = re.sub(r'\n[ \t]*(?:#+|\*|//)?[ \t]*', lambda gap: ' ' + '\0' * (len(gap.group()) - 1), text)
    compact = joined.replace('\0', '')
    offsets = [index for index, character in enumerate(joined) if character != '\0']
    findings = []
    for pattern, replacement in rules:
        for match in pattern.finditer(compact):
            line = text.count('\n', 0, offsets[match.start()]) + 1
            findings.append(Finding(path, line, match.group(), replacement))
    return sorted(findings, key=lambda finding: finding.line)


def main(arguments: list[str]) -> int:
    """Check the given paths and print what was found."""
    paths = [Path(name) for name in arguments] or [path for name in DEFAULT for path in sorted(ROOT.glob(name))]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        print(f'Not found: {", ".join(missing)}', file=sys.stderr)
        return 2
    rules = read_rules()
    findings = [finding for path in find_files(paths) for finding in check(path, rules)]
    for finding in findings:
        print(finding)
    if findings:
        print(f'{len(findings)} phrases that tools/dev/deny_list.txt refuses', file=sys.stderr)
    return int(bool(findings))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
