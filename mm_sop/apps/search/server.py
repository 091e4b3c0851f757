"""HTTP server of the search page."""

import io
import ipaddress
import json
import logging
import random
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Lock
from urllib.parse import SplitResult, parse_qs, urlsplit

import cv2
import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image, ImageOps

from mm_sop.datasets.transforms.loading import decode_image
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.retrieval.image_index import ImageIndex
from mm_sop.utils.files import printable, read_regular
from mm_sop.utils.templates import template_environment

THUMBNAIL_SIDE = 256
IMAGE_SIDE = 1600
MAX_MATCHES = 200
COUNTS = (24, 48, 96, 192)
"""Numbers of matches that the page offers."""
DEFAULT_COUNT = 48

_STATIC = Path(__file__).parent / 'static'
_STATIC_FILES = {
    '/search.css': ('search.css', 'text/css; charset=utf-8'),
    '/search.js': ('search.js', 'text/javascript; charset=utf-8'),
    '/icon.svg': ('icon.svg', 'image/svg+xml'),
}
_HEADERS = {
    'Content-Security-Policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-cache',
}
_BUSY = b'HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
_JPEG_MAGIC = b'\xff\xd8\xff'
# Encoded images cached in memory, by their longer side: less than 100 MB of each kind.
_CACHE_SIZES = {THUMBNAIL_SIDE: 4096, IMAGE_SIDE: 64}


class RequestError(Exception):
    """A refused request, with its HTTP status and the reason, which is shown on the page."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class SearchServer(ThreadingHTTPServer):
    """HTTP server of the search page and of the images of an index, which are requested by number only.

    Images are always decoded and sent as JPEG. The ``Host`` of a request must be an IP address, ``localhost`` or one
    of the given names, so that a foreign page cannot reach the server through a name that points to it (DNS
    rebinding).

    Args:
        index: The index.
        encoder: The encoder that the index was built with.
        host: Address to listen on.
        port: Port; 0 for any free one.
        names: Further host names that are accepted.
        max_upload: Largest upload in bytes.
        max_pixels: Largest width times height of an uploaded image.
        max_uploads: Uploads held in memory at a time; further ones are refused.
        max_connections: Open connections at a time, each of which takes a thread; further ones are refused.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(
        self,
        index: ImageIndex,
        encoder: Encoder,
        host: str = '127.0.0.1',
        port: int = 0,
        names: Sequence[str] = (),
        max_upload: int = 32 * 2**20,
        max_pixels: int = 50_000_000,
        max_uploads: int = 4,
        max_connections: int = 64,
    ) -> None:
        self.index = index
        self.encoder = encoder
        self.names = {'localhost', host.lower(), *(name.lower() for name in names)}
        self.max_upload = max_upload
        self.max_pixels = max_pixels
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        template = template_environment('mm_sop.apps.search').get_template('search.html')
        self.page = template.render(counts=COUNTS, default_count=DEFAULT_COUNT).encode()
        self._shrunk = {side: lru_cache(count)(self._shrink) for side, count in _CACHE_SIZES.items()}
        # Decoders hold up to 20 bytes for each of at most 90 million pixels: one image of the index at a time.
        self._decoding = Lock()
        # Decoding and encoding take much memory and all cores: one upload at a time.
        self._encoding = Lock()
        self._uploads = BoundedSemaphore(max_uploads)
        self._connections = BoundedSemaphore(max_connections)
        super().__init__((host, port), SearchHandler)

    @property
    def url(self) -> str:
        """URL of the page."""
        host, port = self.socket.getsockname()[:2]
        return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'

    def describe(self) -> dict:
        """Describe the index and its encoder."""
        origin = self.encoder.specification.origin
        return dict(
            images=len(self.index),
            unreadable=len(self.index.unreadable),
            folder=printable(self.index.folder.absolute().name),
            encoder=printable(str(origin.get('checkpoint', 'encoder'))),
            max_upload=self.max_upload,
        )

    def list_images(self, name: str, count: int) -> dict:
        """List images whose path contains a text, ignoring case, or random images if the text is empty."""
        if name:
            names = (printable(file.path).lower() for file in self.index.files)
            numbers = [number for number, each in enumerate(names) if name.lower() in each]
        else:
            numbers = random.sample(range(len(self.index)), min(count, len(self.index)))
        return dict(total=len(numbers), images=[self._entry(number) for number in numbers[:count]])

    def search(self, features: torch.Tensor, count: int) -> dict:
        """Find the most similar images, and report how long it took."""
        started = time.perf_counter()
        cosines, numbers = self.index.search(features, count)
        seconds = time.perf_counter() - started
        matches = [dict(self._entry(number), score=cosine) for cosine, number in zip(cosines, numbers, strict=True)]
        return dict(seconds=seconds, matches=matches)

    def search_by_image(self, number: int, count: int) -> dict:
        """Find the images most similar to one of the index, without itself; ``name`` is its path."""
        found = self.search(self.index.features[number], count + 1)
        others = [match for match in found['matches'] if match['number'] != number][:count]
        return dict(found, matches=others, name=self._entry(number)['name'])

    @contextmanager
    def upload_slot(self) -> Iterator[None]:
        """Reserve memory for one upload.

        Raises:
            RequestError: As many uploads as allowed are in memory already.
        """
        if not self._uploads.acquire(blocking=False):
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, 'Too many images are being uploaded: try again soon')
        try:
            yield
        finally:
            self._uploads.release()

    def encode(self, content: bytes) -> torch.Tensor:
        """Compute the features, (D,), of an uploaded image.

        Raises:
            RequestError: The content is not an image, or too large.
        """
        with self._encoding, torch.inference_mode():
            try:
                image = decode_image(content, self.max_pixels)
            except Exception as error:  # decoders raise almost anything on broken bytes
                reason = printable((str(error) or type(error).__name__).splitlines()[0][:200])
                raise RequestError(HTTPStatus.BAD_REQUEST, f'This image cannot be read: {reason}') from error
            return self.encoder(Image.fromarray(np.ascontiguousarray(image[..., ::-1])))[0][0].cpu()

    def image(self, number: int, side: int) -> bytes:
        """Encode an image of the index as JPEG, shrunk to a longer side; cached until its file changes.

        ``side`` is :data:`THUMBNAIL_SIDE` or :data:`IMAGE_SIDE`.

        Raises:
            RequestError: The file is gone or broken.
        """
        try:
            status = Path(self.index.path(number)).stat()
            with self._decoding:
                return self._shrunk[side](number, side, (status.st_size, status.st_mtime_ns))
        except Exception as error:
            message = 'The image has been removed or changed since it was indexed'
            raise RequestError(HTTPStatus.NOT_FOUND, message) from error

    def _shrink(self, number: int, side: int, _state: tuple) -> bytes:
        # The state of the file is only part of the cache's key.
        image = _decode_reduced(read_regular(self.index.path(number)), side)
        factor = min(1.0, side / max(image.shape[:2]))
        height, width = (max(1, round(factor * length)) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()

    def accepts_host(self, host: str) -> bool:
        """Whether a ``Host`` header is an IP address or a known name, which no foreign page can point here."""
        match = re.fullmatch(r'(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?', host.lower())
        name = match[1].strip('[]') if match else ''
        try:
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def process_request(self, request, client_address) -> None:
        """Answer a connection in its own thread, or refuse it if there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request, client_address) -> None:
        """Ignore clients that have disconnected."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def _entry(self, number: int) -> dict:
        return dict(number=number, name=printable(self.index.files[number].path))


class _TimedReader(io.RawIOBase):
    """Reader of a connection with a deadline that only bytes received at a sufficient rate extend.

    Args:
        connection: The connection.
        seconds: Time for a request, from :meth:`restart`.
        rate: Bytes that extend the deadline by one second.
    """

    def __init__(self, connection: socket.socket, seconds: float, rate: float) -> None:
        super().__init__()
        self._connection, self._seconds, self._rate = connection, seconds, rate

    def restart(self) -> None:
        """Start the time of a request."""
        self._end = time.monotonic() + self._seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Read available bytes, or wait for some until the deadline."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError('the request has taken too long')
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self._end += count / self._rate
        return count


class SearchHandler(BaseHTTPRequestHandler):
    """Handler of one connection."""

    server: SearchServer
    protocol_version = 'HTTP/1.1'
    server_version, sys_version = 'mm-sop', ''
    # Seconds for receiving a request and for sending its answer.
    timeout = 30
    # Slower uploads, in bytes per second, are cut off.
    min_rate = 2**18

    def setup(self) -> None:
        """Limit the time of each whole request, not only that of each packet."""
        super().setup()
        self.rfile.close()
        self._reader = _TimedReader(self.connection, self.timeout, self.min_rate)
        self.rfile = io.BufferedReader(self._reader, 2**16)

    def handle_one_request(self) -> None:
        self._reader.restart()
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *args) -> None:
        """Log no requests."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the base class cannot parse, with the headers of every answer."""
        self.close_connection = True
        self._send(HTTPStatus(code), *_json(dict(error=HTTPStatus(code).phrase)))

    def _answer(self, respond: Callable[[SplitResult], tuple[bytes, str]]) -> None:
        status = HTTPStatus.OK
        lengths = self.headers.get_all('Content-Length', [])
        is_known = len(lengths) == 1 and re.fullmatch('[0-9]{1,18}', lengths[0])
        self._unread = int(lengths[0]) if is_known else None
        try:
            self._check_sender()
            content, kind = respond(_split(self.path))
        except ConnectionError:
            raise
        except RequestError as error:
            status, (content, kind) = error.status, _json(dict(error=str(error)))
        except Exception as error:
            print_log(''.join(traceback.format_exception(error)), logger='current', level=logging.ERROR)
            message = 'Internal server error; see the terminal of the server'
            status, (content, kind) = HTTPStatus.INTERNAL_SERVER_ERROR, _json(dict(error=message))
        # An unread body must not be taken for the next request.
        is_ambiguous = (bool(lengths) and not is_known) or 'Transfer-Encoding' in self.headers
        if status != HTTPStatus.OK or self._unread or is_ambiguous:
            # A limited rest of what a refused client sends is read, else it may not see the answer.
            left = min(self._unread or 0, 8 * self.server.max_upload)
            with suppress(TimeoutError):
                while left and (chunk := self.rfile.read(min(left, 2**16))):
                    left -= len(chunk)
            self.close_connection = True
        self._send(status, content, kind)

    def _check_sender(self) -> None:
        host, origin = self.headers.get('Host', ''), self.headers.get('Origin')
        if not self.server.accepts_host(host):
            raise RequestError(HTTPStatus.FORBIDDEN, 'This server does not accept this host name; see --allow-name')
        if origin is not None and _split(origin).netloc != host:
            raise RequestError(HTTPStatus.FORBIDDEN, 'Requests from other pages are refused')

    def _get(self, url: SplitResult) -> tuple[bytes, str]:
        if url.path == '/':
            return self.server.page, 'text/html; charset=utf-8'
        if url.path in _STATIC_FILES:
            name, kind = _STATIC_FILES[url.path]
            return (_STATIC / name).read_bytes(), kind
        for prefix, side in (('/thumbnail/', THUMBNAIL_SIDE), ('/image/', IMAGE_SIDE)):
            if url.path.startswith(prefix):
                return self.server.image(self._number(url.path.removeprefix(prefix)), side), 'image/jpeg'
        query = _query(url)
        if url.path == '/index':
            return _json(self.server.describe())
        if url.path == '/images':
            return _json(self.server.list_images(query.get('name', ''), _count(query)))
        if url.path == '/search':
            number = self._number(query.get('image', ''))
            return _json(self.server.search_by_image(number, _count(query)))
        raise RequestError(HTTPStatus.NOT_FOUND, 'There is nothing here')

    def _post(self, url: SplitResult) -> tuple[bytes, str]:
        if url.path != '/search':
            raise RequestError(HTTPStatus.NOT_FOUND, 'There is nothing here')
        count = _count(_query(url))
        with self.server.upload_slot():
            features = self.server.encode(self._read_body())
        return _json(self.server.search(features, count))

    def _read_body(self) -> bytes:
        length = self._unread
        if length is None:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, 'An upload needs a Content-Length')
        if length > self.server.max_upload:
            message = f'The image exceeds the {self.server.max_upload / 2**20:.0f} MiB that are allowed'
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        self._unread = 0
        try:
            content = self.rfile.read(length)
        except TimeoutError as error:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, 'The upload has taken too long') from error
        if len(content) < length:
            raise RequestError(HTTPStatus.BAD_REQUEST, 'The upload is incomplete')
        return content

    def _number(self, text: str) -> int:
        if not re.fullmatch(r'[0-9]{1,9}', text) or int(text) >= len(self.server.index):
            raise RequestError(HTTPStatus.NOT_FOUND, 'There is no image with this number')
        return int(text)

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.connection.settimeout(self.timeout)
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(content)))
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(content)


def _json(content: dict) -> tuple[bytes, str]:
    return json.dumps(content).encode(), 'application/json'


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f'Invalid URL: {error}') from error


def _query(url: SplitResult) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(url.query).items()}


def _count(query: dict[str, str]) -> int:
    text = query.get('count', str(DEFAULT_COUNT))
    if not re.fullmatch(r'[0-9]{1,4}', text) or not 0 < int(text) <= MAX_MATCHES:
        raise RequestError(HTTPStatus.BAD_REQUEST, f'count must be 1 ... {MAX_MATCHES}')
    return int(text)


def _decode_reduced(data: bytes, side: int) -> np.ndarray:
    """Decode an image, (H, W, 3), BGR; a common JPEG at the smallest of its reduced sizes that is at least ``side``."""
    if data.startswith(_JPEG_MAGIC):
        with suppress(Exception), Image.open(io.BytesIO(data), formats=['JPEG']) as image:
            if image.mode in ('L', 'RGB') and image.width * image.height <= Image.MAX_IMAGE_PIXELS:
                image.draft(None, (side, side))
                upright = ImageOps.exif_transpose(image).convert('RGB')
                return cv2.cvtColor(np.asarray(upright), cv2.COLOR_RGB2BGR)
    # Also for damaged files, which it reports or repairs as when the index was built.
    return decode_image(data)
