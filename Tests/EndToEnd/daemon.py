"""Starts the real daemon the way systemd does, with a notify socket, and talks to it over HTTP."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

# The program under test; scripts/test-daemon sets it.
BINARY = os.environ.get("DIFFUSED", str(REPOSITORY / ".build/release/diffused"))

# Compiled kernels and tuning results, shared by all daemons of a run: the first one compiles, the others start warm.
CACHE = Path(os.environ.get("DIFFUSED_TEST_CACHE", tempfile.gettempdir() + f"/diffused-test-cache-{os.getuid()}"))

# Longest a start may take with empty caches, and longest a picture of the demo model may.
START_SECONDS = 180
REQUEST_SECONDS = 120


def environment(**changes):
    """The environment of a started program; a value of None removes a variable."""
    CACHE.mkdir(parents=True, exist_ok=True)
    merged = {**os.environ, "POCL_CACHE_DIR": str(CACHE / "pocl"), "XDG_CACHE_HOME": str(CACHE), **changes}
    for name in ("WIDTH", "HEIGHT", "MIXED_PRECISION", "NOTIFY_SOCKET"):
        merged.setdefault(name, None)
    return {name: value for name, value in merged.items() if value is not None}


def run(*arguments, timeout=START_SECONDS, **changes):
    """Runs the program to its end; returns the completed process with its output as text."""
    return subprocess.run(
        [BINARY, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        env=environment(**changes),
        cwd=REPOSITORY,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Answer:
    """An HTTP response, read to its end."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)


class Daemon:
    """One running daemon with its own directory, configuration, port and notify socket; a context manager."""

    def __init__(self, configuration="", model=REPOSITORY / "Models/demo", environment=None):
        self.directory = Path(tempfile.mkdtemp(prefix="diffused-test-"))
        self.port = free_port()
        self.pictures = self.directory / "pictures"
        self.configuration = self.directory / "config.yaml"
        self.configuration.write_text(
            f"server: {{host: 127.0.0.1, port: {self.port}}}\n"
            f"model: {{path: {model}}}\n"
            f"storage: {{directory: {self.pictures}}}\n" + configuration
        )
        self.environment = environment or {}
        self.messages = []
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.close()

    def close(self):
        subprocess.run(["rm", "-rf", str(self.directory)], check=True)

    def start(self):
        """Starts the process; does not wait for it to be ready."""
        address = self.directory / "notify"
        address.unlink(missing_ok=True)
        # Messages of an earlier process on the same directory do not count.
        self.messages = []
        self.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notifications.bind(str(address))
        threading.Thread(target=self.listen, args=(self.notifications,), daemon=True).start()
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", "--config", str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(NOTIFY_SOCKET=str(address), **self.environment),
                cwd=self.directory,
            )

    def listen(self, notifications):
        # Ends with the test program.
        while True:
            message = notifications.recv(65536).decode()
            self.messages.append((time.monotonic(), message))

    def notified(self, line):
        """When the daemon sent a line to the service manager; one time for each."""
        return [when for when, message in list(self.messages) if line in message.split("\n")]

    def wait_until(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.output()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not happen within {seconds} s:\n{self.output()}")
            time.sleep(0.02)

    def wait_until_ready(self):
        self.wait_until(lambda: self.notified("READY=1"), START_SECONDS, "READY=1")

    def wait_until_drawing(self):
        self.wait_until(lambda: self.metric("diffused_generation_running") == 1, 10, "the start of a picture")

    def output(self):
        """What the daemon has written so far."""
        return (self.directory / "log").read_text(errors="replace")

    def end(self, number=signal.SIGTERM, timeout=REQUEST_SECONDS):
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def request(self, method, path, body=None, headers=None, timeout=REQUEST_SECONDS):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def generate(self, prompt, **parameters):
        body = json.dumps({"prompt": prompt, **parameters})
        return self.request("POST", "/generate", body, {"Content-Type": "application/json"})

    def metric(self, name):
        """The value of a metric without labels; None when there is no such metric."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[1])
        return None


class Background:
    """A call running in a thread; `result` waits for it."""

    def __init__(self, call, *arguments, **keywords):
        self.value = self.error = None

        def work():
            try:
                self.value = call(*arguments, **keywords)
            except Exception as error:  # handed to whoever asks for the result
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def result(self, timeout=REQUEST_SECONDS):
        self.thread.join(timeout)
        if self.thread.is_alive():
            raise AssertionError(f"no answer within {timeout} s")
        if self.error is not None:
            raise self.error
        return self.value
