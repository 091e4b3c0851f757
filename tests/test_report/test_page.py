import base64
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mm_sop.report.montage import to_png
from mm_sop.report.page import Chart, Details, Photo, Section, Table, render_page

BAD = '<script>alert("x")</script> & co'


def png(width):
    return to_png(Image.fromarray(np.zeros((4, width, 3), np.uint8)))


class Tags(HTMLParser):
    """Collects tags and checks that they close."""

    void = {'meta', 'img', 'source'}

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_page():
    items = [Chart('c', png(20), png(30), BAD), Photo('p', png(40), BAD), Table([BAD], [[BAD]]), Details(BAD, BAD)]
    return render_page(BAD, 'not shown', BAD, BAD, [Section(BAD, BAD, items), Section('', '')])


def test_names_cannot_break_the_page():
    page = make_page()
    assert '<script' not in page and page.count('&lt;script&gt;') == 12
    tags = [tag for tag, _ in Tags(page).tags]
    assert tags.count('table') == tags.count('details') == 1 and tags.count('img') == 2
    # Browsers take <image> for <img>, which would show no dark variant.
    assert tags.count('picture') == 1 and 'image' not in tags


def test_page_loads_nothing():
    page = make_page()
    assert not re.search(r'(https?:|//|url\(|@import|<link|<iframe)', re.sub(r'base64,[\w+/=]+', '', page))
    sources = [attrs.get('src') or attrs.get('srcset') for tag, attrs in Tags(page).tags if tag in ('img', 'source')]
    assert len(sources) == 3 and all(source.startswith('data:image/png;base64,') for source in sources)


def test_both_themes_and_fine_images():
    tags = Tags(make_page()).tags
    source, chart, photo = [attrs for tag, attrs in tags if tag in ('img', 'source')]
    assert source['media'] == '(prefers-color-scheme: dark)'
    assert base64.b64decode(source['srcset'].split(',')[1].split(' ')[0]) == png(30)
    assert base64.b64decode(chart['src'].split(',')[1]) == png(20)
    assert (chart['width'], photo['width']) == ('10', '20')


def test_files():
    assert list(Chart('c', b'l', b'd', '').files.items()) == [('c.png', b'l'), ('c_dark.png', b'd')]
    assert Photo('p', b'x', '').files == {'p.png': b'x'}
