"""A headless Chromium over its debugging pipe: no package is needed, and nothing listens on a port."""

import json
import os
import select
import shutil
import subprocess
import time

EXECUTABLE = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)


class Page:
    """One page, loaded from a file; `errors` are its console errors and exceptions, `requests` what it asked for beside itself."""

    def __init__(self, path, profile, width=1000, height=900, dark=False):
        (to_read, ours_to), (ours_from, to_write) = os.pipe(), os.pipe()
        options = "--headless --no-sandbox --disable-gpu --disable-quic --disable-background-networking --remote-debugging-pipe --hide-scrollbars"
        command = f'exec "{EXECUTABLE}" {options} --user-data-dir="{profile}" about:blank 3<&{to_read} 4>&{to_write}'
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.pipes, self.buffer, self.number, self.session = (ours_to, ours_from), b"", 0, None
        self.errors, self.requests, self.loaded = [], [], False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.address = path.resolve().as_uri()
        self.send("Page.navigate", url=self.address)
        self.wait(lambda: self.loaded)

    def resize(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _receive(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.pipes[1]], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium did not answer")
            part = os.read(self.pipes[1], 1 << 16)
            if not part:
                raise ConnectionError("Chromium ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(message)
        kind, given = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(given["exceptionDetails"].get("exception", {}).get("description", given["exceptionDetails"]["text"]))
        elif kind == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.errors.append(str(given["args"]))
        elif kind == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])
        elif kind == "Network.requestWillBeSent" and given["request"]["url"] != self.address:
            self.requests.append(given["request"]["url"])
        elif kind == "Page.loadEventFired":
            self.loaded = True
        return message

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.pipes[0], json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while (answer := self._receive(deadline)).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def wait(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            self._receive(deadline)

    def run(self, script):
        """The value of a JavaScript expression, or of what it promises."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self):
        """The whole page as PNG, base64."""
        return self.send("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        for pipe in self.pipes:
            os.close(pipe)
