"""HTTP server of the search page."""

import io
import ipaddress
import json
import logging
import os
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

from mm_sop.datasets.files import printable, read_regular
from mm_sop.datasets.transforms.loading import decode_image
from mm_sop.evaluation.loading import Encoder
from mm_sop.evaluation.picture_index import PictureIndex

THUMBNAIL_SIDE = 256
PICTURE_SIDE = 1600
MOST_MATCHES = 200

_FOLDER = Path(__file__).parent
_FILES = {
    '/': ('search.html', 'text/html; charset=utf-8'),
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
_JSON = 'application/json'
_BUSY = b'HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
_JPEG = b'\xff\xd8\xff'
# Encoded pictures kept in memory, by their longest side: less than 100 MB of each kind.
_NUM_CACHED = {THUMBNAIL_SIDE: 4096, PICTURE_SIDE: 64}


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: Why, for the reader of the page.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class SearchServer(ThreadingHTTPServer):
    """Serves the search page and the pictures of an index, which are asked for by number alone.

    Pictures are always decoded and sent as JPEG. Requests must name the server by an IP address, ``localhost`` or one
    of its own names, so that a foreign page cannot reach it by a name that it has pointed here (DNS rebinding).

    Args:
        index: The index.
        encoder: Its encoder.
        host: Address to listen on.
        port: Port, 0 for any that is free.
        names: Other names by which it may be asked for.
        max_upload: Largest upload in bytes.
        max_pixels: Largest width times height of an uploaded picture.
        max_uploads: Uploads that are held in memory at once; further ones are refused.
        max_connections: Connections at a time, each of which takes a thread; further ones are refused.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(
        self,
        index: PictureIndex,
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
        self._shrunk = {side: lru_cache(count)(self._shrink) for side, count in _NUM_CACHED.items()}
        # Decoders hold up to 20 bytes for each of at most 90 million pixels: one picture of the index at a time.
        self._decoding = Lock()
        # Decoding and encoding take much memory and all cores: one upload at a time.
        self._encoding = Lock()
        self._uploads = BoundedSemaphore(max_uploads)
        self._connections = BoundedSemaphore(max_connections)
        super().__init__((host, port), SearchHandler)

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'

    def describe(self) -> dict:
        """What is searched with what."""
        origin = self.encoder.specification.origin
        return dict(
            pictures=len(self.index),
            unreadable=len(self.index.unreadable),
            folder=printable(self.index.folder.absolute().name),
            encoder=printable(str(origin.get('checkpoint', 'encoder'))),
            max_upload=self.max_upload,
        )

    def list_pictures(self, name: str, count: int) -> dict:
        """Pictures whose path has a text in it, or any pictures if it is empty."""
        if name:
            names = (printable(file.path).lower() for file in self.index.files)
            numbers = [number for number, each in enumerate(names) if name.lower() in each]
        else:
            numbers = random.sample(range(len(self.index)), min(count, len(self.index)))
        return dict(total=len(numbers), pictures=[self._entry(number) for number in numbers[:count]])

    def search(self, features: torch.Tensor, count: int) -> dict:
        """The pictures most alike, and how long it took to find them."""
        started = time.perf_counter()
        cosines, numbers = self.index.search(features, count)
        seconds = time.perf_counter() - started
        matches = [dict(self._entry(number), score=cosine) for cosine, number in zip(cosines, numbers, strict=True)]
        return dict(seconds=seconds, matches=matches)

    def search_like(self, number: int, count: int) -> dict:
        """The pictures most like one of the index, without itself, whose ``name`` is given."""
        found = self.search(self.index.features[number], count + 1)
        others = [match for match in found['matches'] if match['number'] != number][:count]
        return dict(found, matches=others, name=self._entry(number)['name'])

    @contextmanager
    def place_for_upload(self) -> Iterator[None]:
        """Room in memory for one upload.

        Raises:
            RequestError: There is none.
        """
        if not self._uploads.acquire(blocking=False):
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, 'Too many pictures are being uploaded: try again soon')
        try:
            yield
        finally:
            self._uploads.release()

    def encode(self, content: bytes) -> torch.Tensor:
        """Features of an uploaded picture, (D,).

        Raises:
            RequestError: It is none, or too large.
        """
        with self._encoding, torch.inference_mode():
            try:
                picture = decode_image(content, self.max_pixels)
            except Exception as error:  # decoders raise almost anything on broken bytes
                reason = printable((str(error) or type(error).__name__).splitlines()[0][:200])
                raise RequestError(HTTPStatus.BAD_REQUEST, f'This is no picture that can be read: {reason}') from error
            return self.encoder(Image.fromarray(np.ascontiguousarray(picture[..., ::-1])))[0][0].cpu()

    def picture(self, number: int, side: int) -> bytes:
        """A picture of the index as JPEG, shrunk to a longest side; encoded again only if its file has changed.

        Args:
            number: Its number.
            side: :data:`THUMBNAIL_SIDE` or :data:`PICTURE_SIDE`.

        Raises:
            RequestError: Its file is gone or broken.
        """
        try:
            status = os.stat(self.index.path(number))
            with self._decoding:
                return self._shrunk[side](number, side, (status.st_size, status.st_mtime_ns))
        except Exception as error:
            message = 'The picture has been removed or changed since it was indexed'
            raise RequestError(HTTPStatus.NOT_FOUND, message) from error

    def _shrink(self, number: int, side: int, state: tuple) -> bytes:
        picture = _decode_reduced(read_regular(self.index.path(number)), side)
        factor = min(1.0, side / max(picture.shape[:2]))
        height, width = (max(1, round(factor * length)) for length in picture.shape[:2])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()

    def is_own_name(self, host: str) -> bool:
        """Whether a ``Host`` header names this server by a name that no one else can give it."""
        match = re.fullmatch(r'(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?', host.lower())
        name = match[1].strip('[]') if match else ''
        try:
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def process_request(self, request, client_address) -> None:
        """Answer a connection in a thread of its own, or refuse it if there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request, client_address) -> None:
        """Keep silent about clients that have gone away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def _entry(self, number: int) -> dict:
        return dict(number=number, name=printable(self.index.files[number].path))


class _TimedReader(io.RawIOBase):
    """Bytes of a connection, for a total time that grows with what has come: sending slowly does not gain any.

    Args:
        connection: The connection.
        seconds: Time for a request, from :meth:`restart`.
        rate: Bytes that gain one more second.
    """

    def __init__(self, connection: socket.socket, seconds: float, rate: float) -> None:
        super().__init__()
        self._connection, self._seconds, self._rate = connection, seconds, rate

    def restart(self) -> None:
        """Begin a request."""
        self._end = time.monotonic() + self._seconds

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray) -> int:
        """Read what is there, or wait for it as long as there is time."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError('the request has taken too long')
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self._end += count / self._rate
        return count


class SearchHandler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = 'HTTP/1.1'
    server_version, sys_version = 'mm-sop', ''
    # Seconds for receiving a request and for sending its answer; slower uploads than the rate, in bytes a second, end.
    timeout, slowest_rate = 30, 2**18

    def setup(self) -> None:
        """Read with a limit to the time of each request, not only to that of each packet."""
        super().setup()
        self.rfile.close()
        self._reader = _TimedReader(self.connection, self.timeout, self.slowest_rate)
        self.rfile = io.BufferedReader(self._reader, 2**16)

    def handle_one_request(self) -> None:
        """Answer one request of the connection."""
        self._reader.restart()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer a request that has no body."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer an upload."""
        self._answer(self._post)

    def log_message(self, *args) -> None:
        """Requests are not logged."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the base class cannot read, with the headers of every answer."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(status, json.dumps(dict(error=status.phrase)).encode(), _JSON)

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
        except Exception as error:
            status, message = self._explain(error)
            content, kind = json.dumps(dict(error=message)).encode(), _JSON
        # A body that nobody has read must not be taken for the next request.
        is_unclear = bool(lengths) and not is_known or 'Transfer-Encoding' in self.headers
        if status != HTTPStatus.OK or self._unread or is_unclear:
            self._discard()
        self._send(status, content, kind)

    def _explain(self, error: Exception) -> tuple[HTTPStatus, str]:
        if isinstance(error, RequestError):
            return error.status, str(error)
        print_log(''.join(traceback.format_exception(error)), logger='current', level=logging.ERROR)
        return HTTPStatus.INTERNAL_SERVER_ERROR, 'Something went wrong on the server; its terminal says what'

    def _discard(self) -> None:
        """Read what a refused client still sends, else it may not see the answer; but not for ever."""
        left = min(self._unread or 0, 8 * self.server.max_upload)
        with suppress(TimeoutError):
            while left and (chunk := self.rfile.read(min(left, 2**16))):
                left -= len(chunk)
        self.close_connection = True

    def _check_sender(self) -> None:
        host, origin = self.headers.get('Host', ''), self.headers.get('Origin')
        if not self.server.is_own_name(host):
            raise RequestError(HTTPStatus.FORBIDDEN, 'This server is not known by that name; see --allow-name')
        if origin is not None and _split(origin).netloc != host:
            raise RequestError(HTTPStatus.FORBIDDEN, 'Requests from other pages are refused')

    def _get(self, url: SplitResult) -> tuple[bytes, str]:
        if url.path in _FILES:
            name, kind = _FILES[url.path]
            return (_FOLDER / name).read_bytes(), kind
        if url.path.startswith('/thumbnail/'):
            return self.server.picture(self._number(url.path.removeprefix('/thumbnail/')), THUMBNAIL_SIDE), 'image/jpeg'
        if url.path.startswith('/picture/'):
            return self.server.picture(self._number(url.path.removeprefix('/picture/')), PICTURE_SIDE), 'image/jpeg'
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path == '/index':
            return self._json(self.server.describe())
        if url.path == '/pictures':
            return self._json(self.server.list_pictures(query.get('name', ''), _count(query)))
        if url.path == '/search':
            number = self._number(query.get('picture', ''))
            return self._json(self.server.search_like(number, _count(query)))
        raise RequestError(HTTPStatus.NOT_FOUND, 'There is nothing here')

    def _post(self, url: SplitResult) -> tuple[bytes, str]:
        if url.path != '/search':
            raise RequestError(HTTPStatus.NOT_FOUND, 'There is nothing here')
        count = _count({key: values[-1] for key, values in parse_qs(url.query).items()})
        with self.server.place_for_upload():
            features = self.server.encode(self._read_body())
        return self._json(self.server.search(features, count))

    def _read_body(self) -> bytes:
        length = self._unread
        if length is None:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, 'An upload must say its length')
        if length > self.server.max_upload:
            message = f'The picture has more than the {self.server.max_upload / 2**20:.0f} MiB that are allowed'
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        self._unread = 0
        try:
            content = self.rfile.read(length)
        except TimeoutError as error:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, 'The upload has taken too long') from error
        if len(content) < length:
            raise RequestError(HTTPStatus.BAD_REQUEST, 'The upload broke off')
        return content

    def _number(self, text: str) -> int:
        if not re.fullmatch(r'[0-9]{1,9}', text) or int(text) >= len(self.server.index):
            raise RequestError(HTTPStatus.NOT_FOUND, 'There is no picture of that number')
        return int(text)

    def _json(self, content: dict) -> tuple[bytes, str]:
        return json.dumps(content).encode(), _JSON

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


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f'This is no address: {error}') from error


def _count(query: dict[str, str]) -> int:
    text = query.get('count', '48')
    if not re.fullmatch(r'[0-9]{1,4}', text) or not 0 < int(text) <= MOST_MATCHES:
        raise RequestError(HTTPStatus.BAD_REQUEST, f'count must be 1 ... {MOST_MATCHES}')
    return int(text)


def _decode_reduced(data: bytes, side: int) -> np.ndarray:
    """Decode a picture, (H, W, 3), BGR; a common JPEG at the smallest of its reduced sizes that is not below a side."""
    if data.startswith(_JPEG):
        with suppress(Exception), Image.open(io.BytesIO(data), formats=['JPEG']) as image:
            if image.mode in ('L', 'RGB') and image.width * image.height <= Image.MAX_IMAGE_PIXELS:
                image.draft(None, (side, side))
                upright = ImageOps.exif_transpose(image).convert('RGB')
                return cv2.cvtColor(np.asarray(upright), cv2.COLOR_RGB2BGR)
    # Also for damaged files, which it explains or repairs as when the index was made.
    return decode_image(data)
