"""`diffused pull` against a hub that has the demo model, beside what nobody needs of it; then a picture with what came."""

import hashlib
import http.server
import json
import tempfile
import threading
import unittest
from pathlib import Path

from daemon import REPOSITORY, run
from png import PNG

DEMO = REPOSITORY / "Models/demo"
COMMIT = "c" * 40
JUNK = {
    "README.md": b"# Demo\n",
    "demo.ckpt": b"x" * 5000,
    "safety_checker/model.safetensors": b"x" * 5000,
    "unet/diffusion_pytorch_model.bin": b"x" * 5000,
    "unet/diffusion_flax_model.msgpack": b"x" * 5000,
}


class Hub(http.server.ThreadingHTTPServer):
    """Serves `owner/demo`; files in large storage from another port, as on the hub."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {str(path.relative_to(DEMO)): path.read_bytes() for path in DEMO.rglob("*") if path.is_file()}
        self.files.update(JUNK)
        self.asked = []
        self.store = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.store.files, self.store.asked, self.store.store = self.files, self.asked, None
        for server in (self, self.store):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self):
        for server in (self, self.store):
            server.shutdown()
            server.server_close()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        if self.path.startswith("/api/models/owner/demo/revision/main?"):
            return self.answer(200, json.dumps(self.listing()).encode())
        name = self.path.split(f"/owner/demo/resolve/{COMMIT}/")[-1]
        content = server.files.get(name)
        if content is None:
            return self.answer(404, b"")
        if server.store and len(content) > 100_000:
            target = f"http://127.0.0.1:{server.store.server_port}{self.path}"
            return self.answer(302, b"", {"Location": target})
        server.asked.append((name, self.headers["Range"], self.headers["Authorization"]))
        begin = int((self.headers["Range"] or "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        self.answer(206 if begin else 200, content[begin:], headers)

    def listing(self):
        siblings = []
        for name, content in sorted(self.server.files.items()):
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": name, "size": len(content), "blobId": blob}
            if len(content) > 100_000:
                entry["blobId"] = "0" * 40
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": "owner/demo", "sha": COMMIT, "siblings": siblings}

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Pull(unittest.TestCase):
    def setUp(self):
        self.hub = Hub()
        self.addCleanup(self.hub.close)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.output = Path(directory.name) / "models/demo"

    def pull(self, *arguments, output=True, **changes):
        settings = {"HF_ENDPOINT": self.hub.address, "HF_HOME": "/nonexistent", "HF_TOKEN": None, **changes}
        arguments = [*arguments, "--output", self.output] if output else arguments
        return run("pull", *arguments, **settings)

    def test_a_pulled_model_draws(self):
        result = self.pull("owner/demo", HF_TOKEN="hf_secret")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, f"{self.output}\n")
        self.assertNotIn("hf_secret", result.stderr)
        for path in DEMO.rglob("*"):
            if path.is_file() and path.name != "README.md":
                self.assertEqual((self.output / path.relative_to(DEMO)).read_bytes(), path.read_bytes(), path)
        there = {str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file()}
        self.assertEqual(there & set(JUNK), set())
        # The token is the hub's, and not the store's.
        tokens = {token for name, _, token in self.hub.asked if name.endswith(".safetensors")}
        self.assertEqual(tokens, {None})
        self.assertIn(("model_index.json", None, "Bearer hf_secret"), self.hub.asked)

        picture = self.output / "picture.png"
        drawn = run(
            "generate", "--model", self.output, "--prompt", "a red circle", "--steps", 2, "--width", 64, "--height", 64,
            "--output", picture,
        )  # fmt: skip
        self.assertEqual(drawn.returncode, 0, drawn.stderr)
        self.assertEqual(PNG(picture.read_bytes()).width, 64)

        # Again: nothing is fetched. With a part of a file: the rest of it.
        self.hub.asked.clear()
        result = self.pull("owner/demo")
        self.assertEqual((result.returncode, self.hub.asked), (0, []))
        self.assertIn("already there", result.stderr)
        weights = self.output / "unet/diffusion_pytorch_model.safetensors"
        content = weights.read_bytes()
        digits = hashlib.sha256(content).hexdigest()
        weights.with_name(f"{weights.name}.{digits[:12]}.incomplete").write_bytes(content[:1_000_000])
        weights.unlink()
        self.assertEqual(self.pull("owner/demo").returncode, 0)
        self.assertEqual([(name, wanted) for name, wanted, _ in self.hub.asked], [
            ("unet/diffusion_pytorch_model.safetensors", "bytes=1000000-")
        ])  # fmt: skip
        self.assertEqual(weights.read_bytes(), content)

    def test_a_dry_run_lists_and_fetches_nothing(self):
        result = self.pull("owner/demo", "--dry-run")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("unet/diffusion_pytorch_model.safetensors", result.stdout)
        self.assertRegex(result.stdout, r"\n *[0-9.]+ MB  in all\n$")
        self.assertFalse(self.output.exists())
        self.assertEqual(self.hub.asked, [])

    def test_files_are_chosen_by_name(self):
        result = self.pull("owner/demo", "--file", "demo.*")
        self.assertEqual((result.returncode, result.stdout), (0, f"{self.output}/demo.ckpt\n"), result.stderr)
        self.assertIn("diffused inspect", result.stderr)

    def test_mistakes_are_named(self):
        for arguments, changes, code, words in (
            (["owner/demo/x"], {}, 2, "owner/demo/x"),
            (["../demo"], {}, 2, "../demo"),
            (["owner/demo", "--variant", "fp8"], {}, 2, "fp8"),
            (["owner/demo"], {"HF_ENDPOINT": "hub"}, 2, "HF_ENDPOINT"),
            (["owner/other"], {}, 1, "there is no such repository"),
            (["owner/demo@v9"], {}, 1, "there is no such repository"),
            (["owner/demo", "--file", "nothing*"], {}, 1, "no file is called nothing*"),
        ):
            with self.subTest(arguments=arguments):
                result = self.pull(*arguments, **changes)
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertEqual(result.stdout, "")
        self.output.parent.mkdir()
        self.output.write_text("in the way")
        result = self.pull("owner/demo")
        self.assertEqual(result.returncode, 1)
        self.assertIn(str(self.output), result.stderr)


if __name__ == "__main__":
    unittest.main()
