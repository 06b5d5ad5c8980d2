"""A browser without a window, driven by chromedriver's own protocol (W3C WebDriver): JSON over HTTP, so no package."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = "needs a browser: apt-get install chromium chromium-driver"
_FLAGS = (
    "headless=new",
    "no-sandbox",  # as root it would not start otherwise
    "disable-gpu",
    "enable-unsafe-swiftshader",  # the projector draws with WebGL
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
    "force-device-scale-factor=1",
)
# what a page shows: its elements lie in shadow trees and frames, which a plain search does not enter
_HELPERS = r"""
function all(selector, root = document) {
  let found = [...root.querySelectorAll(selector)];
  for (const e of root.querySelectorAll('*')) {
    const inner = e.shadowRoot || e.contentDocument;
    if (inner) found = found.concat(all(selector, inner));
  }
  return found;
}
function text(root = document.body) {
  if (root.nodeType === 3) return root.textContent;
  if (['SCRIPT', 'NOSCRIPT', 'STYLE', 'TEMPLATE'].includes(root.tagName)) return '';
  if (root.nodeType === 1 && root.ownerDocument.defaultView.getComputedStyle(root).display === 'none') return '';
  if (root.contentDocument && root.contentDocument.body) return text(root.contentDocument.body);
  const shadow = root.shadowRoot ? [...root.shadowRoot.childNodes] : [];
  return [...shadow, ...root.childNodes].map(n => text(n)).join(' ').replace(/\s+/g, ' ');
}
"""


class Browser:
    """One window.

    Args:
        profile: an empty directory for what the browser keeps.
        size: of the window, in pixels.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1400, 900)) -> None:
        assert CHROMIUM is not None
        assert DRIVER is not None
        self._driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self._driver.stdout is not None
        port = next(m for line in self._driver.stdout if (m := re.search(r"successfully on port (\d+)", line))).group(1)
        self._url = f"http://localhost:{port}/session"
        flags = [*_FLAGS, f"user-data-dir={profile}", f"window-size={size[0]},{size[1]}"]
        options = {"binary": CHROMIUM, "args": [f"--{flag}" for flag in flags]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        asked = {"capabilities": {"alwaysMatch": wanted}}
        self._url += f"/{self._ask('', asked)['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait()
            assert self._driver.stdout is not None
            self._driver.stdout.close()

    def open(self, url: str) -> None:
        """Loads a page."""
        self._ask("/url", {"url": "about:blank"})  # else a change behind the # loads nothing
        self._ask("/url", {"url": url})

    def run(self, script: str) -> object:
        """Runs JavaScript, the body of a function; `all(selector)` and `text()` look everywhere."""
        return self._ask("/execute/sync", {"script": _HELPERS + script, "args": []})

    def wait(self, script: str, seconds: float = 120.0) -> object:
        """Waits until a script returns what is true, and returns that."""
        limit = time.monotonic() + seconds
        while not (found := self.run(script)):
            if time.monotonic() > limit:
                raise TimeoutError(f"{script!r} never held; the page says: {self.run('return text()')!r:.3000}")
            time.sleep(0.2)
        return found

    def settle(self) -> None:
        """Waits until the picture stays as it is."""
        last = None
        for _ in range(40):
            now = self._ask("/screenshot")
            if now == last:
                return
            last = now
            time.sleep(0.7)

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows, as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._ask("/screenshot")))

    def set_width(self, width: int) -> None:
        """Shows the page as a screen of this width does: a narrow one is a phone."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.protocol("Emulation.setDeviceMetricsOverride", size)

    def whole_page(self, path: Path) -> None:
        """Writes the page from its top to its end, as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self.protocol("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})["data"]
        path.write_bytes(base64.b64decode(data))

    def protocol(self, command: str, parameters: object):
        """Sends a command of Chrome's own protocol."""
        return self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def requested(self) -> list[str]:
        """Returns the addresses that were requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self._ask("/se/log", {"type": "performance"})]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def _ask(self, path: str, body: object = None, method: str | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.read().decode()[:2000]}") from None
