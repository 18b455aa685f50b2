"""Headless Chromium, driven by its DevTools protocol over a pipe: no package and no port are needed."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --disable-extensions "
    "--disable-breakpad "
    "--no-default-browser-check --disable-client-side-phishing-detection --no-pings --mute-audio "
    "--disable-features=OptimizationHints,MediaRouter,Translate --remote-debugging-pipe"
).split()


class Chromium:
    """A browser with one page; `events` holds what it reports of the page and of its workers.

    Args:
        program: Path of Chromium.
        folder: For its profile, its log of the network (`net.json`) and downloads.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.folder, self.events, self.last_id = folder, [], 0
        self.net_log = folder / "net.json"
        # The browser reads commands from descriptor 3 and writes answers to descriptor 4.
        their_in, self.to_browser = os.pipe()
        self.from_browser, their_out = os.pipe()
        # Copies above 4, so that neither is overwritten before it is used.
        high = [os.dup2(descriptor, number) for descriptor, number in ((their_in, 200), (their_out, 201))]
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={self.net_log}"]
        with (folder / "chromium.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "about:blank"],
                pass_fds=(3, 4, *high),
                preexec_fn=lambda: (os.dup2(200, 3), os.dup2(201, 4)),
                stdout=log,
                stderr=log,
            )
        for descriptor in (their_in, their_out, *high):
            os.close(descriptor)
        os.set_blocking(self.from_browser, False)
        self.buffer = b""
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.target = page["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.page(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def call(self, method: str, session: str | None = None, timeout: float = 120, **params: Any) -> Any:
        """Send a command and return its result."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for answer in self._read():
                if answer.get("id") == self.last_id:
                    assert "error" not in answer, (method, answer["error"])
                    return answer["result"]
                self.events.append(answer)
        raise TimeoutError(method)

    def page(self, method: str, **params: Any) -> Any:
        """Send a command to the page."""
        return self.call(method, self.session, **params)

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; promises are awaited."""
        answer = self.page("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str | Callable[[], Any], timeout: float = 120) -> Any:
        """Wait until a JavaScript expression, or a function, is true."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := (self.run(condition) if isinstance(condition, str) else condition()):
                return found
            time.sleep(0.1)
        raise TimeoutError(f"{condition}; the page says {self.run('document.body?.innerText')!r}")

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an `<input type=file>`."""
        root = self.page("DOM.getDocument")["root"]["nodeId"]
        node = self.page("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.page("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def close(self) -> None:
        """End the browser, so that its log is complete."""
        try:
            self.call("Browser.close")
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.to_browser)
            os.close(self.from_browser)

    def _read(self) -> list[Any]:
        try:
            data = os.read(self.from_browser, 1 << 20)
        except BlockingIOError:
            time.sleep(0.01)
            return []
        if not data:
            raise RuntimeError("the browser ended")
        *messages, self.buffer = (self.buffer + data).split(b"\0")
        return [json.loads(message) for message in messages]


def requested_urls(net_log: Path) -> list[tuple[str, str]]:
    """Return method and address of the requests of pages and workers in a log of Chromium.

    What the browser asks its maker for on its own account (the time, accounts) has no page as its initiator,
    and is left out; so is the opening of a page.
    """
    text = net_log.read_text()
    try:
        log = json.loads(text)
    except json.JSONDecodeError:  # cut short: the log is one event a line
        log = json.loads(text.rstrip().rstrip(",") + "]}")
    kind = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    return [
        (event["params"].get("method", "GET"), event["params"]["url"])
        for event in log["events"]
        if event["type"] == kind
        and "url" in event.get("params", {})
        and event["params"].get("initiator", "not an origin") != "not an origin"
    ]
