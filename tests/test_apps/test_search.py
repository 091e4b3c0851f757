import io
import json
import os
import re
import select
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from threading import Lock, Thread
from urllib.parse import quote

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmpretrain.datasets.transforms import processing
from PIL import Image
from testing.image_encoders import small_encoder
from testing.sample_images import smooth_image, write_images

from mm_sop.apps.search import SearchServer
from mm_sop.apps.search import server as server_module
from mm_sop.datasets.transforms.loading import decode_image
from mm_sop.evaluation.retrieval.image_index import ImageIndex

NASTY = '<script>alert(1)<!-- &amp; "\'.png'


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    init_default_scope('mmpretrain')
    folder = tmp_path_factory.mktemp('searched')
    write_images(folder / 'images', 12)
    smooth_image(size=(400, 300), seed=5).save(folder / 'images' / NASTY, dpi=(72, 72))
    smooth_image(size=(700, 3), seed=6).save(folder / 'images' / 'thin.png')
    (folder / 'images' / 'broken.png').write_bytes(b'x')
    (folder / 'secret.txt').write_text('secret')
    index, encoder = ImageIndex(folder / 'images', folder / 'store'), small_encoder()
    index.update(encoder)
    limits = dict(max_upload=40_000, max_pixels=250_000, max_uploads=2)
    with SearchServer(index, encoder, names=['Gallery'], **limits) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def ask(server):
    connection = HTTPConnection(*server.server_address[:2], timeout=30)

    def ask(path, body=None, headers=None, method=None):
        connection.request(method or ('GET' if body is None else 'POST'), path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    yield ask
    connection.close()


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def number_of(server, name):
    return next(number for number, file in enumerate(server.index.files) if name in file.path)


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def bomb(side):
    """PNG of a few bytes whose header claims a large square."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b'')


def error(answer):
    status, headers, content = answer
    assert headers['Content-Type'] == 'application/json'
    return status, json.loads(content)['error']


def test_it_listens_on_localhost_only(server):
    assert server.server_address[0] == '127.0.0.1'
    assert server.url == f'http://127.0.0.1:{server.server_address[1]}/'


def test_page_loads_nothing_from_elsewhere(ask):
    kinds = {'/': 'text/html', '/search.css': 'text/css', '/search.js': 'text/javascript', '/icon.svg': 'image/svg+xml'}
    for path, kind in kinds.items():
        status, headers, content = ask(path)
        assert status == 200 and headers['Content-Type'].split(';')[0] == kind
        assert re.findall(r'https?://(?!www\.w3\.org/2000/svg)', content.decode()) == []
        linked = re.findall(r'(?:src|href)="(/[^"]*)"', content.decode()) if path == '/' else []
        assert set(linked) <= set(kinds) and len(linked) == (3 if path == '/' else 0)


def test_every_answer_has_the_security_headers(ask):
    for path in ('/', '/index', '/thumbnail/0', '/nothing'):
        headers = ask(path)[1]
        assert "default-src 'none'" in headers['Content-Security-Policy']
        assert 'unsafe' not in headers['Content-Security-Policy']
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'
        assert 'Python' not in headers['Server']
    status, headers, _ = ask('/', method='PUT')
    assert status == 501 and headers['X-Content-Type-Options'] == 'nosniff'


def test_description(ask):
    description = json.loads(ask('/index')[2])
    expected = dict(images=14, unreadable=1, folder='images', encoder='small.pth', max_upload=40_000)
    assert description == expected


def test_names_are_data_and_not_markup(server, ask):
    status, headers, content = ask('/images?name=' + quote('SCRIPT'))
    assert status == 200 and headers['Content-Type'] == 'application/json'
    found = json.loads(content)
    assert found == dict(total=1, images=[dict(number=number_of(server, NASTY), name=NASTY)])
    script = ask('/search.js')[2].decode()
    assert 'innerHTML' not in script and 'insertAdjacentHTML' not in script


def test_list_of_images(ask):
    assert len(json.loads(ask('/images?count=5')[2])['images']) == 5
    found = json.loads(ask('/images?name=a/&count=2')[2])
    assert found['total'] == 6 and len(found['images']) == 2


def test_search_by_an_image_of_the_index(server, ask):
    found = json.loads(ask('/search?image=3&count=7')[2])
    assert found['name'] == server.index.files[3].path
    scores = [match['score'] for match in found['matches']]
    assert len(scores) == 7 and scores == sorted(scores, reverse=True)
    assert 3 not in [match['number'] for match in found['matches']]


def test_search_by_an_upload(server, ask):
    status, _, content = ask('/search?count=3', server.index.path(4).read_bytes())
    matches = json.loads(content)['matches']
    assert status == 200 and len(matches) == 3
    assert matches[0]['number'] == 4 and matches[0]['score'] == pytest.approx(1, abs=1e-5)


def test_images_are_sent_as_jpeg(server, ask):
    sizes = {}
    for name in (NASTY, 'thin'):
        for kind in ('thumbnail', 'image'):
            status, headers, content = ask(f'/{kind}/{number_of(server, name)}')
            assert status == 200 and headers['Content-Type'] == 'image/jpeg'
            image = Image.open(io.BytesIO(content))
            assert image.format == 'JPEG'
            sizes[name, kind] = image.size
    assert sizes[NASTY, 'thumbnail'] == (256, 192) and sizes[NASTY, 'image'] == (400, 300)
    assert sizes['thin', 'thumbnail'] == (256, 1)


@pytest.mark.parametrize(
    'path',
    [
        '/thumbnail/14', '/thumbnail/-1', '/thumbnail/', '/thumbnail/../../secret.txt', '/image/..%2f..%2fsecret.txt',
        '/../secret.txt', '/..%2fsecret.txt', '//etc/passwd', '/server.py', '/search?image=x', '/search?image=99',
        '/search', '/thumbnail/0/../1', '/thumbnail/%D9%A1', '/thumbnail/9999999999',
    ],
)  # fmt: skip
def test_nothing_but_indexed_images_is_served(ask, path):
    status, reason = error(ask(path))
    assert status == 404 and reason


@pytest.mark.parametrize('count', ['0', '-1', 'x', '201', '99999'])
def test_bad_counts(ask, count):
    assert error(ask(f'/search?image=1&count={count}'))[0] == 400


def test_foreign_host_names_are_refused(ask):
    for host in ('evil.example', 'evil.example:8642', '127.0.0.1.evil.example', '', '@127.0.0.1:x', '[::1'):
        for path in ('/', '/index', '/thumbnail/0'):
            assert error(ask(path, headers={'Host': host}))[0] == 403
    for host in ('localhost:1', '127.0.0.1', '[::1]:80', '192.168.1.7:8642', 'gallery', 'GALLERY:99'):
        assert ask('/index', headers={'Host': host})[0] == 200


def test_uploads_from_other_pages_are_refused(server, ask):
    image = as_png(smooth_image())
    own = server.url.rstrip('/')
    assert error(ask('/search', image, {'Origin': 'http://evil.example'}))[0] == 403
    assert error(ask('/search', image, {'Origin': 'null'}))[0] == 403
    assert ask('/search', image, {'Origin': own})[0] == 200


def test_large_uploads_are_refused(ask):
    status, reason = error(ask('/search', b'x' * 40_001))
    assert status == 413 and 'MiB' in reason
    assert error(ask('/search', bomb(501)))[0] == 400
    assert error(ask('/search', bomb(60_000)))[0] == 400
    assert ask('/search', as_png(Image.new('RGB', (500, 500))))[0] == 200


@pytest.mark.parametrize(
    'content',
    [b'', b'no image', as_png(smooth_image())[:300], b'<svg onload="alert(1)"/>', b'GIF89a', b'\xff\xd8\xff'],
)
def test_broken_uploads_are_explained(ask, content):
    status, reason = error(ask('/search', content))
    assert status == 400 and reason.startswith('This image cannot be read') and ' at 0x' not in reason
    assert ask('/index')[0] == 200


def test_uploads_need_a_length_and_all_of_their_bytes(server, ask):
    for header, expected in ((b'', b'411'), (b'Content-Length: -5\r\n', b'411'), (b'Content-Length: 99\r\n', b'400')):
        with socket.create_connection(server.server_address[:2], timeout=30) as client:
            client.sendall(b'POST /search HTTP/1.1\r\nHost: localhost\r\n' + header + b'\r\nabc')
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1000).startswith(b'HTTP/1.1 ' + expected)
    # A client that goes away before it has its answer.
    with socket.create_connection(server.server_address[:2]) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        client.sendall(b'GET /image/0 HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert ask('/index')[0] == 200


def say(server, text):
    """Send raw bytes and return everything that is answered until the connection closes."""
    with socket.create_connection(server.server_address[:2], timeout=30) as client:
        client.sendall(text.encode())
        client.shutdown(socket.SHUT_WR)
        return b''.join(iter(lambda: client.recv(2**16), b''))


@pytest.mark.parametrize(
    'request_line, header', [('GET http://[::1 HTTP/1.1', ''), ('POST /search HTTP/1.1', 'Origin: http://[evil\r\n')]
)
def test_malformed_addresses_are_refused(server, capfd, request_line, header):
    answer = say(server, f'{request_line}\r\nHost: localhost\r\n{header}Content-Length: 0\r\n\r\n')
    assert answer.startswith(b'HTTP/1.1 400 ') and b'Invalid URL' in answer
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize(
    'header',
    [
        'Content-Length: {length}', 'Transfer-Encoding: chunked', 'Content-Length: -1', 'Content-Length: x',
        'Content-Length: 0\r\nContent-Length: {length}',
    ],
)  # fmt: skip
def test_a_body_is_not_taken_for_a_request(server, header):
    hidden = 'GET /index HTTP/1.1\r\nHost: localhost\r\n\r\n'
    for method, path, status in (('GET', '/search.css', b'200'), ('POST', '/nothing', b'404')):
        head = f'{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header.format(length=len(hidden))}\r\n\r\n'
        answer = say(server, head + hidden)
        assert answer.startswith(b'HTTP/1.1 ' + status) and answer.count(b'HTTP/1.1 ') == 1
        assert b'\r\nConnection: close\r\n' in answer
    # Two requests without a body are both answered.
    assert say(server, 2 * hidden).count(b'HTTP/1.1 200') == 2


@pytest.mark.parametrize('size', [(60_000, 1), (1, 60_000)])
def test_strips_are_searched_like_other_images(server, ask, size, monkeypatch):
    enlarged = []
    resize = processing.mmcv.imresize
    monkeypatch.setattr(
        processing.mmcv, 'imresize', lambda image, scale, **kw: enlarged.append(scale) or resize(image, scale, **kw)
    )
    strip = as_png(Image.new('RGB', size, (200, 30, 40)))
    assert len(strip) < 1000
    status, _, content = ask('/search?count=2', strip)
    assert status == 200 and len(json.loads(content)['matches']) == 2
    side = server.encoder.transform.resize_edge
    assert [sorted(scale) for scale in enlarged] == [[side, 8 * side]]


def test_failures_of_the_encoder_are_explained_and_logged(server, ask, monkeypatch):
    logged = []
    monkeypatch.setattr(server_module, 'print_log', lambda text, **options: logged.append(text))

    def fail(image):
        raise RuntimeError('CUDA out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(server, 'encoder', fail)
        status, reason = error(ask('/search', as_png(smooth_image())))
    assert status == 500 and 'terminal' in reason and 'CUDA' not in reason
    assert len(logged) == 1 and logged[0].startswith('Traceback') and 'CUDA out of memory' in logged[0]
    assert ask('/search', as_png(smooth_image()))[0] == 200


def test_concurrent_uploads_are_limited(server, ask):
    head = b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nslow'
    with ExitStack() as clients:
        slow = [clients.enter_context(socket.create_connection(server.server_address[:2], 30)) for _ in range(2)]
        for client in slow:
            client.sendall(head)
        while server._uploads._value:
            time.sleep(0.01)
        status, reason = error(ask('/search', as_png(smooth_image())))
        assert status == 503 and 'try again' in reason
        assert ask('/index')[0] == 200
        for client in slow:
            client.sendall(b' file')
            assert client.recv(1000).startswith(b'HTTP/1.1 400')
    assert ask('/search', as_png(smooth_image()))[0] == 200


def test_uploads_to_other_paths_are_refused(ask):
    assert error(ask('/index', b'x'))[0] == 404


def get(server, path):
    """Status and content of an answer over a separate connection."""
    with closing(HTTPConnection(*server.server_address[:2], timeout=60)) as connection:
        connection.request('GET', path)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.fixture
def changing(tmp_path):
    """Server of a folder that a test may change; the first image has control and undecodable bytes in its name."""
    name = os.fsdecode(b'a\xe9\n\x1b[31m.png')
    write_images(tmp_path / 'images', 3, nested=False)
    Image.new('RGB', (32, 32), (200, 30, 40)).save(tmp_path / 'images' / name)
    (tmp_path / 'secret.txt').write_text('secret')
    index, encoder = ImageIndex(tmp_path / 'images', tmp_path / 'store'), small_encoder()
    index.update(encoder)
    with SearchServer(index, encoder, max_connections=3) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_removed_and_replaced_files(changing, tmp_path):
    paths = [changing.index.path(number) for number in range(4)]
    for path in paths[:3]:
        path.unlink()
    paths[0].symlink_to(tmp_path / 'secret.txt')
    os.mkfifo(paths[1])
    for number in range(3):
        status, content = get(changing, f'/image/{number}')
        assert status == 404 and 'removed or changed' in json.loads(content)['error']
    before = get(changing, '/image/3')
    Image.new('RGB', (40, 20), (0, 0, 255)).save(paths[3])
    after = get(changing, '/image/3')
    assert before[0] == after[0] == 200 and Image.open(io.BytesIO(after[1])).size == (40, 20)


def test_names_cannot_fool_a_reader(changing):
    name = r'a\xe9\n\x1b[31m.png'
    found = json.loads(get(changing, '/images?name=' + quote(name))[1])
    (number,) = [number for number in range(4) if changing.index.files[number].path.startswith('a')]
    assert found == dict(total=1, images=[dict(number=number, name=name)])
    assert json.loads(get(changing, f'/search?image={number}')[1])['name'] == name
    assert get(changing, f'/thumbnail/{number}')[0] == 200


def test_connections_are_limited(changing):
    address = changing.server_address[:2]
    with ExitStack() as clients:
        for _ in range(3):
            client = clients.enter_context(socket.create_connection(address, 30))
            client.sendall(b'GET /index HTTP/1.1\r\nHost: localhost\r\n\r\n')
            assert client.recv(1000).startswith(b'HTTP/1.1 200')
        with socket.create_connection(address, 30) as refused:
            assert refused.recv(1000).startswith(b'HTTP/1.1 503') and refused.recv(1000) == b''
    # Connections are free again once their threads have noticed that the clients are gone.
    for _ in range(1000):
        with suppress(ConnectionError):
            if get(changing, '/index')[0] == 200:
                return
        time.sleep(0.01)
    pytest.fail('the connections are still taken')


def test_slow_senders_are_cut_off(server, ask, monkeypatch):
    monkeypatch.setattr(server_module.SearchHandler, 'timeout', 1)
    endings = []
    for start in (
        b'GET /index HTTP/1.1\r\nX-Long: ',
        b'POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n',
    ):
        with socket.create_connection(server.server_address[:2], timeout=30) as client:
            client.sendall(start)
            for _ in range(200):
                client.sendall(b'x')
                if select.select([client], [], [], 0.1)[0]:
                    endings.append(client.recv(1000)[:12])
                    break
    assert endings == [b'', b'HTTP/1.1 408']
    monkeypatch.undo()
    assert ask('/search', as_png(smooth_image()))[0] == 200


def test_images_are_decoded_one_at_a_time_and_none_twice(server, monkeypatch):
    lock, active, most, resized, resize = Lock(), 0, 0, 0, server_module.cv2.resize

    def observed(*args, **options):
        nonlocal active, most, resized
        with lock:
            active, resized = active + 1, resized + 1
            most = max(most, active)
        time.sleep(0.05)
        with lock:
            active -= 1
        return resize(*args, **options)

    monkeypatch.setattr(server_module.cv2, 'resize', observed)
    paths = [f'/{kind}/{number}' for kind in ('image', 'thumbnail') for number in range(6)] * 2
    with SearchServer(server.index, server.encoder) as fresh, ThreadPoolExecutor(24) as pool:
        Thread(target=fresh.serve_forever, daemon=True).start()
        first = list(pool.map(lambda path: get(fresh, path), paths))
        again = list(pool.map(lambda path: get(fresh, path), paths))
        fresh.shutdown()
    assert first == again and {status for status, _ in first} == {200}
    assert resized == 12 and most == 1


@pytest.mark.parametrize('mode, orientation', [('RGB', 6), ('L', 1), ('CMYK', 3)])
def test_photos_are_shown_as_they_are_read(changing, mode, orientation):
    path = changing.index.path(1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = smooth_image(size=(1500, 900), seed=3).convert(mode)
    photo.save(path, 'JPEG', quality=95, exif=exif)
    shown = Image.open(io.BytesIO(get(changing, '/thumbnail/1')[1])).convert('RGB')
    expected = Image.fromarray(decode_image(path.read_bytes())[..., ::-1])
    expected.thumbnail((256, 256), Image.Resampling.BOX)
    assert shown.size == expected.size
    assert np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean() < 3


def test_a_port_in_use_is_an_error(server):
    with pytest.raises(OSError):
        SearchServer(server.index, server.encoder, port=server.server_address[1])
