"""Drives a Chromium without a window, over the pipe of its debugging protocol; needs nothing but the browser."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_SECONDS = 60
_OPTIONS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--remote-debugging-pipe')


class Browser:
    """One page in a browser.

    Args:
        command: The browser. Defaults to None, the first of :data:`NAMES` that is installed.

    Attributes:
        problems: Exceptions, and what the browser has refused or complained about.

    Raises:
        FileNotFoundError: There is none.
    """

    def __init__(self, command: str | None = None) -> None:
        command = command or next(filter(None, map(shutil.which, NAMES)), None)
        if command is None:
            raise FileNotFoundError(f'no browser: install one of {", ".join(NAMES)}, or name one by --browser')
        self.problems, self._buffer, self._number, self._session = [], b'', 0, None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._start([command, *_OPTIONS, f'--user-data-dir={self._folder.name}', 'about:blank'])
        pages = [target for target in self.call('Target.getTargets')['targetInfos'] if target['type'] == 'page']
        self._session = self.call('Target.attachToTarget', targetId=pages[0]['targetId'], flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'DOM'):
            self.call(f'{domain}.enable')

    def __enter__(self) -> 'Browser':
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the protocol and wait for its result."""
        self._number += 1
        message = dict(id=self._number, method=method, params=parameters)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._output, json.dumps(message).encode() + b'\0')
        while (answer := self._read()).get('id') != self._number:
            if answer.get('method') == 'Runtime.exceptionThrown':
                self.problems.append(answer['params']['exceptionDetails']['text'])
            elif answer.get('method') == 'Log.entryAdded':
                self.problems.append(answer['params']['entry']['text'])
        if 'error' in answer:
            raise RuntimeError(f'{method}: {answer["error"]["message"]}')
        return answer['result']

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open an address in a page of a size and a color scheme."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self.call('Emulation.setEmulatedMedia', features=[scheme])
        self.call('Page.navigate', url=url)
        self.wait('document.readyState === "complete"')

    def evaluate(self, expression: str):
        """Value of an expression in the page; promises are awaited."""
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in result:
            raise RuntimeError(f'{expression}: {result["exceptionDetails"]}')
        return result['result'].get('value')

    def wait(self, expression: str, seconds: float = _SECONDS) -> None:
        """Wait until an expression is true.

        Raises:
            TimeoutError: It does not become true.
        """
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f'{expression} has not become true; problems: {self.problems}')
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """Press and release a key, such as ``'Tab'`` or ``'ArrowRight'``."""
        codes = dict(Tab=9, Enter=13, ArrowLeft=37, ArrowUp=38, ArrowRight=39, ArrowDown=40)
        text = dict(text='\r') if key == 'Enter' else {}
        shared = dict(key=key, code=key, windowsVirtualKeyCode=codes[key])
        self.call('Input.dispatchKeyEvent', type='keyDown', **shared, **text)
        self.call('Input.dispatchKeyEvent', type='keyUp', **shared)

    def choose_file(self, selector: str, path: str) -> None:
        """Give a file to an ``<input type=file>``."""
        path = os.path.abspath(path)
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', files=[path], nodeId=node)

    def screenshot(self) -> bytes:
        """What is seen, as WebP."""
        return base64.b64decode(self.call('Page.captureScreenshot', format='webp', quality=85)['data'])

    def _start(self, command: list[str]) -> None:
        to_browser, self._output = os.pipe()
        self._input, from_browser = os.pipe()

        def place_pipes() -> None:
            # The protocol is spoken on the descriptors 3 and 4, which may be in use for either pipe.
            copies = os.dup(to_browser), os.dup(from_browser)
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        self.process = subprocess.Popen(
            command, close_fds=False, preexec_fn=place_pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)

    def _read(self) -> dict:
        while b'\0' not in self._buffer:
            if not select.select([self._input], [], [], _SECONDS)[0]:
                raise TimeoutError(f'the browser has not answered for {_SECONDS} seconds')
            chunk = os.read(self._input, 2**16)
            if not chunk:
                raise ConnectionError('the browser has ended')
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)
