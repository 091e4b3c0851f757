"""Search your own images by similarity on a local web page: python tools/search_images.py CHECKPOINT DIR.

All images below DIR are encoded once; later only new and changed ones. The page is served on this machine alone.
"""

import argparse
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from mm_sop.apps.cli.arguments import add_network, add_trust, command_parser, prepare_libraries
from mm_sop.utils.failures import LaunchError, report_failures

if TYPE_CHECKING:
    from mm_sop.encoders.encoder import Encoder
    from mm_sop.evaluation.retrieval.image_index import ImageIndex


def parse_args() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('checkpoint', help='weights: a checkpoint, an exported folder, https://... or hf:OWNER/NAME')
    parser.add_argument('folder', type=Path, metavar='DIR', help='folder of the images; subfolders count')
    parser.add_argument('--index-only', action='store_true', help='bring the index up to date and stop')
    encoder = parser.add_argument_group('encoder')
    encoder.add_argument('--config', help='config of the run, for checkpoints that do not hold theirs')
    encoder.add_argument('--from', dest='source', metavar='SOURCE', help='timm:NAME, torchvision:NAME, dinov2, ...')
    add_network(encoder)
    encoder.add_argument('--image-size', type=int, help='side that images get; default that of pretraining')
    add_trust(encoder)
    index = parser.add_argument_group('index')
    index.add_argument('--index', type=Path, default='work_dirs/search', help='folder of all indices (%(default)s)')
    index.add_argument('--batch-size', type=int, default=64)
    index.add_argument('--num-workers', type=int, default=2)
    page = parser.add_argument_group('page')
    page.add_argument('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0 lets other machines in')
    page.add_argument('--port', type=int, default=8642, help='0 for any (%(default)s)')
    page.add_argument('--allow-name', nargs='+', default=[], metavar='NAME', help='names that others call it by')
    page.add_argument('--max-upload', type=int, default=32, metavar='MIB', help='largest upload (%(default)s)')
    page.add_argument('--max-pixels', type=int, default=50_000_000, help='of an uploaded image (%(default)s)')
    page.add_argument('--no-open', action='store_true', help='do not open a browser')
    return parser.parse_args()


def build_index(args: argparse.Namespace, encoder: 'Encoder') -> 'ImageIndex':
    """Bring the index up to date."""
    from mm_sop.evaluation.retrieval.image_index import UNREADABLE, ImageIndex, find_store
    from mm_sop.utils.folder_lock import lock_folder

    store = find_store(args.index, args.folder, encoder)
    with lock_folder(store, '--index'):
        index = ImageIndex(args.folder, store)
        done = index.update(encoder, args.batch_size, args.num_workers)
    print(f'{done.images:,} images can be searched, {done.encoded:,} were encoded, {done.removed:,} are gone')
    if done.unreadable:
        print(f'{done.unreadable:,} files cannot be read: {index.store / UNREADABLE}')
    return index


def serve(args: argparse.Namespace, index: 'ImageIndex', encoder: 'Encoder') -> None:
    """Open the port and serve until Ctrl-C."""
    from mm_sop.apps.search import SearchServer

    limits = dict(max_upload=args.max_upload * 2**20, max_pixels=args.max_pixels)
    try:
        server = SearchServer(index, encoder, args.host, args.port, args.allow_name, **limits)
    except OSError as error:
        where = f'{args.host}:{args.port}'
        raise LaunchError(f'cannot listen on {where}: {error.strerror}; choose another --port or --host') from error
    print(f'Search at {server.url} (end with Ctrl+C)', flush=True)
    # Without a display, a browser for terminals would take over this one.
    has_display = sys.platform != 'linux' or 'DISPLAY' in os.environ or 'WAYLAND_DISPLAY' in os.environ
    if has_display and not args.no_open:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


@report_failures('search_images.py', ValueError, FileNotFoundError)
def main() -> None:
    args = parse_args()

    from mmengine.device import get_device

    import mm_sop

    prepare_libraries()
    encoder = mm_sop.load(args.checkpoint, args.network, args.config, args.source, args.image_size, trusted=args.trust)
    index = build_index(args, encoder.to(get_device()))
    if not args.index_only:
        serve(args, index, encoder)


if __name__ == '__main__':
    main()
