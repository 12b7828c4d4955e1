"""A headless Chromium of this machine, driven through its debugging pipe: no package is needed."""

import base64
import glob
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # as root it starts in none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--force-color-profile=srgb",
)


def find_browser() -> str | None:
    """Returns CHROME of the environment, a browser on the path, or one of playwright's."""
    found = [os.environ.get("CHROME"), *map(shutil.which, _NAMES)]
    cache = os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright"
    found += sorted(glob.glob(f"{cache}/chromium*/chrome-*/*chrome*"))
    usable = [path for path in found if path and os.access(path, os.X_OK)]
    return usable[0] if usable else None


class Browser:
    """One page of a browser; a context manager.

    Attributes:
      problems: what its console says, and requests it made of others than the page's own server.
    """

    def __init__(self, width: int = 1280, height: int = 900, flags: tuple[str, ...] = ()):
        self._ids, self._events = 0, []
        self._own: tuple[str, ...] = ("data:", "file:", "about:", "blob:")
        self.problems: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [
            find_browser(),
            *_FLAGS,
            *flags,
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        to_read, self._writing = os.pipe()
        self._reading, to_write = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._session = b"", None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._reading)
        os.close(self._writing)
        self._profile.cleanup()

    def __call__(self, method, **params):
        """Returns the answer to one command of the DevTools protocol."""
        self._ids += 1
        message = {"id": self._ids, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._ids:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            part = os.read(self._reading, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, params):
        if method == "Runtime.consoleAPICalled":
            self.problems.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(self._own):
                self.problems.append(url)

    def open(self, path):
        """Opens a file, or a server's page, and waits until its scripts have drawn it."""
        url = str(path)
        if url.startswith("http://"):
            self._own = (*self._own[:4], "/".join(url.split("/")[:3]))
        else:
            url = Path(path).resolve().as_uri()
        self("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def give(self, selector, *files):
        """Gives files to an input of the page, as if they were chosen."""
        found = self("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        paths = [str(Path(file).resolve()) for file in files]
        self("DOM.setFileInputFiles", files=paths, objectId=found["result"]["objectId"])

    def wait(self, expression, seconds=20):
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def js(self, expression):
        """Returns the value of an expression of the page."""
        got = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def press(self, key):
        """Presses a key such as "Tab", "Enter", " " or "ArrowRight"."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}
        text = {"Enter": "\r", " ": " "}.get(key)
        keys = {"key": key, "code": "Space" if key == " " else key}
        keys["windowsVirtualKeyCode"] = codes[key]
        self("Input.dispatchKeyEvent", type="keyDown", **keys, **({"text": text} if text else {}))
        self("Input.dispatchKeyEvent", type="keyUp", **keys)

    def resize(self, width, height=900):
        """Gives the page another size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)

    def dark(self, is_dark=True):
        """Asks for the dark form of the page, or the light one."""
        value = "dark" if is_dark else "light"
        feature = {"name": "prefers-color-scheme", "value": value}
        self("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path, whole=False):
        """Writes a PNG of what is seen, or of the whole page."""
        got = self("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(got["data"]))
