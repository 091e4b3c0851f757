"""Use the search page in a real browser and keep images of it: search_page.py CHECKPOINT DIR.

Every step is what a user does: look, click a match, go back, search by name, upload, paste, drop, use the keyboard. The
check fails with what went wrong. Needs Chromium.
"""

import argparse
import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path
from threading import Thread

from browser import Browser
from harness import ROOT
from mmengine.registry import init_default_scope

import mm_sop
from mm_sop.apps.search import SearchServer
from mm_sop.evaluation.retrieval.image_index import ImageIndex
from mm_sop.utils.files import write_atomically

NASTY = '<img src=x onerror="document.title=1">&amp;.png'
TILES = 'document.querySelectorAll(".tile").length'
# Others are loaded when they come into view.
IMAGES = '[...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight && !image.hidden)'
# A file as the clipboard and the mouse hand it over.
TRANSFER = """(() => {
  const bytes = Uint8Array.from(atob('%s'), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], 'given.png', { type: 'image/png' }));
  return transfer;
})()"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint')
    parser.add_argument('folder', type=Path, metavar='DIR', help='folder with at least 100 images')
    parser.add_argument('--browser', help='default: the first Chromium on the path')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/images', help='folder of the images (%(default)s)')
    return parser.parse_args()


def copy_images(source: Path, target: Path) -> Path:
    """A folder with some of the images, a nasty name and a broken file; its first image."""
    target.mkdir()
    images = sorted(path for path in source.rglob('*') if path.suffix in ('.png', '.jpg'))
    if len(images) < 100:
        sys.exit(f'search_page.py: {source} has {len(images)} images (.png, .jpg), expected at least 100')
    for number, path in enumerate(images[:: max(1, len(images) // 600)]):
        shutil.copy(path, target / f'{number:04d}_{path.parent.name}{path.suffix}')
    shutil.copy(images[0], target / NASTY)
    (target / 'broken.png').write_bytes(b'no image')
    return images[0]


def expect(condition: object, what: str) -> None:
    if not condition:
        sys.exit(f'search_page.py: FAILED: {what}')
    print(f'ok: {what}')


def wait_for(browser: Browser, beginning: str) -> None:
    browser.wait(f'document.getElementById("title").textContent.startsWith({json.dumps(beginning)})')


def check_looking(browser: Browser) -> None:
    browser.wait(f'{TILES} === 48')
    browser.wait(f'{IMAGES}.every((image) => image.naturalWidth > 0)')
    expect('cannot be read' in browser.evaluate('document.getElementById("index").textContent'), 'broken file counted')


def check_names(browser: Browser) -> None:
    browser.evaluate('document.getElementById("name").value = "onerror"')
    browser.evaluate('document.querySelector("#pick button").click()')
    browser.wait(f'{TILES} === 1')
    label = browser.evaluate('document.querySelector(".tile").getAttribute("aria-label")')
    expect(NASTY in label, 'a name with markup is shown as text')
    expect(browser.evaluate('document.querySelector("img[onerror]") === null'), 'and is not run')


def check_clicks(browser: Browser) -> None:
    browser.evaluate('document.querySelector(".tile").click()')
    wait_for(browser, f'Images similar to {NASTY}')
    browser.wait(f'{TILES} === 48')
    expect(browser.evaluate('+document.querySelector(".score").textContent') > 0.999, 'the equal image comes first')
    browser.evaluate('history.back()')
    wait_for(browser, 'Images with')
    expect(browser.evaluate(TILES) == 1, 'back goes back')


def check_uploads(browser: Browser, image: Path) -> None:
    transfer = TRANSFER % base64.b64encode(image.read_bytes()).decode()
    browser.choose_file('#file', str(image))
    wait_for(browser, f'Images similar to {image.name}')
    expect(browser.evaluate('+document.querySelector(".score").textContent') > 0.999, 'a chosen file finds itself')
    for event, receiver, field in (('ClipboardEvent', 'paste', 'clipboardData'), ('DragEvent', 'drop', 'dataTransfer')):
        browser.evaluate('location.hash = ""')
        wait_for(browser, 'Random images')
        browser.evaluate(f'document.dispatchEvent(new {event}("{receiver}", {{ {field}: {transfer}, bubbles: true }}))')
        wait_for(browser, 'Images similar to given.png')
        expect(browser.evaluate(TILES) == 48, f'{receiver} searches')


def check_broken_upload(browser: Browser, folder: Path) -> None:
    browser.choose_file('#file', str(folder / 'broken.png'))
    browser.wait('document.getElementById("status").className === "alert"')
    status = browser.evaluate('document.getElementById("status").textContent')
    expect('not an image' in status, 'broken upload explained')
    # The browser reports the refusal.
    browser.problems = [problem for problem in browser.problems if '400' not in problem]


def check_keyboard(browser: Browser) -> None:
    browser.evaluate('location.hash = ""')
    wait_for(browser, 'Random images')
    browser.evaluate('document.querySelector(".tile").focus()')
    for key in ('ArrowRight', 'ArrowDown', 'ArrowLeft'):
        browser.press(key)
    position = '[...document.querySelectorAll(".tile")].indexOf(document.activeElement)'
    columns = 'getComputedStyle(document.getElementById("results")).gridTemplateColumns.split(" ").length'
    expect(browser.evaluate(f'{position} === {columns}'), 'arrow keys move between images')
    browser.press('Enter')
    wait_for(browser, 'Images similar to ')
    focused = browser.evaluate('document.activeElement.id')
    expect(focused == 'title', 'Enter searches and the focus stays in the results')
    unnamed = '[...document.querySelectorAll("input, select, button, a")].filter((part) => !(part.labels?.length || '
    unnamed += 'part.getAttribute("aria-label") || part.textContent.trim())).length'
    expect(browser.evaluate(unnamed) == 0, 'everything that takes the focus has a name')


def take_images(browser: Browser, url: str, out: Path) -> None:
    for name, size, dark in (
        ('search_page', (1200, 860), False),
        ('search_page_dark', (1200, 860), True),
        ('search_page_phone', (390, 800), False),
    ):
        browser.open('about:blank')
        browser.open(f'{url}#image-7', *size, dark)
        browser.wait(f'{TILES} === 48')
        browser.wait(f'{IMAGES}.every((image) => image.naturalWidth > 0)')
        write_atomically(out / f'{name}.webp', browser.screenshot())
    width = browser.evaluate('document.documentElement.scrollWidth')
    expect(width <= 390, 'nothing sticks out on a telephone')


def check(browser: Browser, url: str, image: Path, folder: Path) -> None:
    browser.open(url)
    check_looking(browser)
    check_names(browser)
    check_clicks(browser)
    check_uploads(browser, image)
    check_broken_upload(browser, folder)
    check_keyboard(browser)
    expect(not browser.problems, f'the browser has nothing to complain of {browser.problems or ""}')


def main() -> None:
    args = parse_args()
    init_default_scope('mmpretrain')
    encoder = mm_sop.load(args.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, args.folder.resolve().name)
        image = copy_images(args.folder, folder)
        index = ImageIndex(folder, Path(scratch, 'index'))
        print(index.update(encoder))
        with SearchServer(index, encoder) as server, Browser(args.browser) as browser:
            Thread(target=server.serve_forever, daemon=True).start()
            try:
                check(browser, server.url, image, folder)
                take_images(browser, server.url, args.out)
            finally:
                server.shutdown()


if __name__ == '__main__':
    main()
