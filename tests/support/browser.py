"""Debian's Chromium, headless, over the DevTools protocol: things are found as people find them, by role and name."""

import json
import os
import subprocess
import time
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

SECONDS = 120.0
TRIES = 10
"""How often a field is filled: a page that draws itself anew takes the focus, or what was typed, away."""
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
]
# What a person can see and use, by its role and name: in the dialog in front, where there is one; the innermost, where
# one thing is in another.
FIND = """
(role, name) => {
  const roles = {
    button: 'button, [role=button]', link: 'a[href]', tab: '[role=tab]',
    item: '[role=menuitem]', option: '[role=option]',
    field: 'input:not([type=hidden]), textarea, select, [contenteditable=true], button[aria-haspopup], button[role]',
  };
  const name_of = node => {
    const label = role === 'field' && node.id && document.querySelector(`label[for="${CSS.escape(node.id)}"]`);
    return ((label && label.innerText) || node.innerText || node.ariaLabel || node.placeholder || '').trim();
  };
  const usable = node => {
    const box = node.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && getComputedStyle(node).visibility !== 'hidden' && !node.disabled;
  };
  const dialogs = [...document.querySelectorAll('[role=dialog], [role=alertdialog]')].filter(usable);
  const within = ['item', 'option'].includes(role) || !dialogs.length ? document : dialogs.at(-1);
  const all = [...within.querySelectorAll(roles[role])].filter(usable);
  const exact = all.filter(node => name_of(node) === name);
  const found = exact.length ? exact : all.filter(node => name_of(node).includes(name));
  return found.filter(node => !found.some(other => other !== node && node.contains(other)));
}
"""


class Page:
    """One tab of the browser."""

    def __init__(self, address: str) -> None:
        self.socket = connect(address, max_size=None, proxy=None, ping_interval=None)
        self.count = 0
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.size(1280, 900)

    def call(self, method: str, **values: Any) -> Any:
        """A DevTools method; its result."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": values}))
        while True:
            answer = json.loads(self.socket.recv(timeout=SECONDS))
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; None while the page changes under it."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value") if "exceptionDetails" not in answer else None

    @property
    def text(self) -> str:
        """All that can be read on the page."""
        return str(self.run("document.body.innerText") or "")

    def wait(self, what: Callable[[], Any], why: str) -> Any:
        end = time.monotonic() + SECONDS
        while not (found := what()):
            assert time.monotonic() < end, f"{why}; the page says: {self.text[:2000]}"
            time.sleep(0.1)
        return found

    def wait_for_text(self, *words: str) -> None:
        self.wait(lambda: all(word in self.text for word in words), f"{words} can be read")

    def sees(self, name: str, role: str = "button") -> bool:
        return bool(self.run(f"({FIND})({json.dumps(role)}, {json.dumps(name)}).length"))

    def press(self, name: str, role: str = "button") -> None:
        """Click it with the mouse, as soon as it is there, stays where it is, and nothing covers it."""
        place = self.wait(lambda: self._place(role, name), f"there is a {role} {name!r} to press")
        mouse = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for event in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=event, **mouse)

    def fill(self, label: str, text: str) -> None:
        """Type into the field of that label, in place of what it holds."""
        found = None
        for _ in range(TRIES):
            self.press(label, "field")
            self.run("document.activeElement.select()")
            self.call("Input.insertText", text=text)
            if (found := self.run("document.activeElement.value")) == text:
                return
        raise AssertionError(f"{label!r} holds {found!r}, not {text!r}; the page says: {self.text[:2000]}")

    def rest(self) -> None:
        """Return when the page has not changed for a second."""
        script = """new Promise(done => {
          let timer = setTimeout(done, 1000), limit = setTimeout(done, 15000);
          new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(done, 1000); })
            .observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
        })"""
        self.run(script)

    def picture(self, file: Path) -> None:
        """What the window shows, as a PNG."""
        file.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _place(self, role: str, name: str) -> Any:
        """The middle of the thing, once it stays there and is on top."""
        return self.run(
            f"""(async () => {{
              const node = ({FIND})({json.dumps(role)}, {json.dumps(name)})[0];
              if (!node) return null;
              node.scrollIntoView({{block: 'center', inline: 'center'}});
              const where = () => {{ const box = node.getBoundingClientRect();
                return [box.left + box.width / 2, box.top + box.height / 2]; }};
              const before = where();
              await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
              const after = where(), top = document.elementFromPoint(...after);
              const still = before[0] === after[0] && before[1] === after[1];
              return still && top && (node.contains(top) || top.contains(node)) ? after : null;
            }})()"""
        )


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A new browser with one tab; `folder` is its own. A picture of the tab stays there if the block fails."""
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "chromium.log").open("wb") as log:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**environment, "HOME": str(folder)}, start_new_session=True
        )
    try:
        page = Page(_find_tab(folder, process))
        try:
            yield page
        except BaseException:
            with suppress(Exception):
                page.picture(folder / "failed.png")
                (folder / "failed.txt").write_text(f"{page.run('location.href')}\n\n{page.text}")
            raise
    finally:
        process.terminate()
        process.wait(SECONDS)


def _find_tab(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    """The DevTools address of the only tab, as soon as the browser says where it listens."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    written = folder / "profile" / "DevToolsActivePort"
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError, ValueError, IndexError, StopIteration):
            port = int(written.read_text().splitlines()[0])
            with direct.open(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                return str(next(tab for tab in json.load(answer) if tab["type"] == "page")["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError(f"Chromium does not start: {(folder / 'chromium.log').read_text()[-2000:]}")
