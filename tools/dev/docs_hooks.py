"""Hooks of MkDocs: pages from outside of ``docs``, links between them, and one API page per package."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Page on the site by file in the repository
PAGES = {f'{name.upper()}.md': f'{name}.md' for name in ('contributing', 'changelog', 'security')}
PAGES |= {'README.md': 'index.md', 'configs/README.md': 'configs/index.md'}
PAGES |= {
    f'configs/{path.parent.name}/README.md': f'configs/{path.parent.name}.md' for path in ROOT.glob('configs/*/*.md')
}
SOURCES = {page: source for source, page in PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of ``docs`` and the API pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    for package in sorted(path.parent for path in ROOT.glob('mm_sop/*/__init__.py')):
        files.append(File.generated(config, f'reference/{package.name}.md', content=api_page(package)))
    return files


def api_page(package: Path) -> str:
    """Write the page of a package: one section per module that defines something."""
    lines = [f'# mm_sop.{package.name}', '']
    for path in sorted(package.rglob('*.py')):
        if path.name != '__init__.py' and not path.name.startswith('_'):
            lines += [f'::: {".".join(path.relative_to(ROOT).with_suffix("").parts)}', '']
    return '\n'.join(lines)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = SOURCES.get(here, f'docs/{here}')

    def redirect(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        destination = PAGES.get(path) or (path.removeprefix('docs/') if path.startswith('docs/') else None)
        if destination is None:
            # Files that are not on the site, such as the license: without a link
            return text.lstrip('!').strip('[]')
        return f'{text}({posixpath.relpath(destination, posixpath.dirname(here) or ".")}{anchor or ""})'

    # Links and images with a relative target: [text](path#anchor)
    return re.sub(r'(!?\[[^\]]*\])\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)', redirect, markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Render the Sphinx roles and links of docstrings."""
    if not page.file.src_uri.startswith('reference/'):
        return html
    html = re.sub(r':(?:class|func|meth|mod|attr|data|obj|exc):(?=<code>)', '', html)
    return re.sub(r'<code>([^<]*?) &lt;(https?://[^<&]+)&gt;</code>_', r'<a href="\2">\1</a>', html)
