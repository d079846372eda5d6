"""The daemon as its users and systemd meet it: started, asked, stopped, killed."""

import json
import re
import shutil
import signal
import socket
import tempfile
import time
import unittest
from pathlib import Path

from daemon import REPOSITORY, Background, Daemon, run
from png import PNG

# Seconds of work on any machine: long enough to be asked about while it runs. What has to happen meanwhile waits for the
# daemon to say that it draws, never for a time to pass.
LONG = {"steps": 1000, "seed": 1}


class Serving(unittest.TestCase):
    """One daemon for all that does not end it."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(environment={"WATCHDOG_USEC": "2000000"})
        cls.daemon.start()
        cls.addClassCleanup(cls.daemon.__exit__)
        cls.daemon.wait_until_ready()

    def test_ready_is_announced_once_and_agrees_with_http(self):
        self.assertEqual(len(self.daemon.notified("READY=1")), 1)
        self.assertEqual(self.daemon.get("/health/live").status, 200)
        self.assertEqual(self.daemon.get("/health/ready").status, 200)

    def test_watchdog_pings_arrive_in_time_also_while_drawing(self):
        start = time.monotonic()
        drawings = []
        while time.monotonic() < start + 5:
            drawings.append(self.daemon.generate("a red heart", steps=300, seed=1))
        pings = [when for when in self.daemon.notified("WATCHDOG=1") if when >= start]
        gaps = [after - before for before, after in zip([start, *pings], pings)]
        self.assertGreaterEqual(len(pings), 3)
        self.assertLess(max(gaps), 2, "a gap longer than the watchdog's interval")
        self.assertEqual({drawing.status for drawing in drawings}, {200})

    def test_root_points_to_the_documentation(self):
        self.assertEqual(self.daemon.get("/").json, {"message": "See /docs for documentation"})

    def test_documentation_needs_no_other_host(self):
        page = self.daemon.get("/docs")
        self.assertEqual(page.status, 200)
        self.assertIn("text/html", page.headers["Content-Type"])
        self.assertNotIn(b"//", page.body.replace(b"http://HOST", b""))
        document = self.daemon.get("/openapi.json").json
        self.assertIn("post", document["paths"]["/generate"])
        self.assertIn("get", document["paths"]["/download/{id}"])

    def test_generate_then_download(self):
        answer = self.daemon.generate("a red circle on a blue background", steps=10, seed=7)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(set(answer.json), {"download_id", "time"})
        self.assertGreater(answer.json["time"], 0)
        picture = self.daemon.get(f"/download/{answer.json['download_id']}")
        self.assertEqual(picture.status, 200)
        self.assertEqual(picture.headers["Content-Type"], "image/png")
        decoded = PNG(picture.body)
        self.assertEqual((decoded.width, decoded.height), (64, 64))
        parameters = decoded.text["parameters"]
        self.assertTrue(parameters.startswith("a red circle on a blue background\n"), parameters)
        for part in ("Steps: 10", "Seed: 7", "Size: 64x64"):
            self.assertIn(part, parameters)

    def picture(self, prompt, **parameters):
        answer = self.daemon.generate(prompt, **parameters)
        self.assertEqual(answer.status, 200, answer.body)
        return PNG(self.daemon.get(f"/download/{answer.json['download_id']}").body)

    def test_a_seed_decides_the_picture(self):
        first = self.picture("a red heart", steps=5, seed=1).pixels
        self.assertEqual(first, self.picture("a red heart", steps=5, seed=1).pixels)
        self.assertNotEqual(first, self.picture("a red heart", steps=5, seed=2).pixels)

    def test_unusual_but_right_requests(self):
        for parameters in (
            {"seed": None, "scale": None},
            {"seed": -1},
            {"seed": 2**64 - 1},
            {"scale": 1},
            {"scale": 0.0},
            {"negative_prompt": "blue"},
            {"width": 72, "height": 40},
            {"sampler": "ddim"},
            {"sampler": "DPM++ 2M SDE Karras", "eta": 0.5, "rng": "cuda"},
            {"sampler": "euler_a", "spacing": "trailing"},
            {"steps": 1},
        ):
            with self.subTest(**parameters):
                picture = self.picture("a red circle", **{"steps": 2, **parameters})
                size = parameters.get("width", 64), parameters.get("height", 64)
                self.assertEqual((picture.width, picture.height), size)
        for prompt in ("", "🍎 красный круг", "word " * 200, "a\nb\tc", "\u0000"):
            with self.subTest(prompt=prompt[:20]):
                self.picture(prompt, steps=1)

    def assert_refused(self, answer, field=None):
        """A 422 in FastAPI's form."""
        self.assertEqual(answer.status, 422, answer.body[:300])
        detail = answer.json["detail"]
        self.assertIsInstance(detail, list)
        self.assertGreater(len(detail), 0)
        for problem in detail:
            self.assertEqual(problem["loc"][0], "body")
            self.assertIsInstance(problem["msg"], str)
            self.assertIsInstance(problem["type"], str)
        if field is not None:
            self.assertIn(field, [step for problem in detail for step in problem["loc"]])

    def test_wrong_fields_are_refused(self):
        for field, values in {
            "prompt": [None, 5, ["a"], {"a": 1}, "x" * 200_000],
            "scale": ["abc", [1], 1e400, 1e308],
            "steps": [0, -1, 1001, 2.5, "many", 10**30],
            "seed": [2**64, -(2**63) - 1, 1.5, "abc", [1]],
            "width": [0, 7, 65, -64, 1_000_000, "wide"],
            "height": [0, 63, 10**18],
            "sampler": ["nonsense", 5],
            "schedule": ["nonsense", 5, "karras"],
            "eta": [-1, 2, "much"],
            "rng": ["dice"],
            "negative_prompt": [5],
        }.items():
            for value in values:
                with self.subTest(field=field, value=str(value)[:30]):
                    self.assert_refused(self.daemon.generate(**{"prompt": "a", field: value}), field)

    def test_wrong_bodies_are_refused(self):
        for body in (
            b"",
            b"{",
            b"null",
            b"[]",
            b'"prompt"',
            b"{}",
            b'{"prompt": "a", "scale": NaN}',
            b'{"prompt": "\xff\xfe"}',
            b"[" * 100_000,
            b"\x00" * 1000,
            b"a" * 10_000_000,
        ):
            with self.subTest(body=body[:40], bytes=len(body)):
                try:
                    answer = self.daemon.request("POST", "/generate", body, {"Content-Type": "application/json"})
                except (ConnectionResetError, BrokenPipeError):
                    # The daemon may answer and close before it has read all of a body that is too large.
                    self.assertGreater(len(body), 1_000_000)
                    continue
                self.assert_refused(answer)

    def test_what_is_not_there_is_not_found(self):
        for name in (
            "00000000-0000-0000-0000-000000000000",
            "nonsense",
            "..%2f..%2f..%2fetc%2fpasswd",
            "../../config.yaml",
            "%00",
            "x" * 5000,
        ):
            with self.subTest(name=name[:40]):
                answer = self.daemon.get(f"/download/{name}")
                self.assertEqual(answer.status, 404)
                self.assertIsInstance(answer.json["detail"], str)
        self.assertEqual(
            self.daemon.get("/download/00000000-0000-0000-0000-000000000000").json, {"detail": "No such file"}
        )
        self.assertEqual(self.daemon.get("/nonsense").json, {"detail": "Not Found"})
        self.assertEqual(self.daemon.get("/generate").status, 405)

    def test_a_client_that_goes_away_stops_nothing(self):
        body = json.dumps({"prompt": "a red heart", "steps": 50, "seed": 1}).encode()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", self.daemon.port)) as client:
                client.sendall(
                    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    + f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", self.daemon.port)) as client:
            client.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
        self.picture("a green square", steps=2)

    def test_requests_are_answered_while_a_picture_is_made(self):
        drawing = Background(self.daemon.generate, "a red heart", **LONG)
        self.daemon.wait_until_drawing()
        start = time.monotonic()
        self.assertEqual(self.daemon.get("/health/ready").status, 200)
        self.assertLess(time.monotonic() - start, 1)
        self.assertEqual(drawing.result().status, 200)

    def test_metrics_are_prometheus_text(self):
        answer = self.daemon.get("/metrics")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.headers["Content-Type"].startswith("text/plain"))
        for line in answer.body.decode().splitlines():
            self.assertRegex(line, r'^(# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [-+0-9.eEInfNa]+)$')


class SeveralModels(unittest.TestCase):
    def test_models_are_loaded_when_they_are_named_and_go_when_others_come(self):
        demo = REPOSITORY / "Models/demo"
        # All three take 12 MB or more, and 64 MiB hold no more than two of them in float32.
        models = "".join(f"  - {{name: {name}, path: {demo}, precision: float32}}\n" for name in ("second", "third", "fourth"))
        configuration = f"models:\n{models}  - {{name: gone, path: /nonexistent}}\ndevice: {{model_memory: 64}}\n"
        with Daemon(configuration) as daemon:
            daemon.wait_until_ready()

            def loaded():
                return [model["name"] for model in daemon.get("/models").json["models"] if model["loaded"]]

            def draw(**fields):
                answer = daemon.generate("a red circle", steps=2, seed=5, **fields)
                self.assertEqual(answer.status, 200, answer.body)
                return daemon.get("/download/" + answer.json["download_id"]).body

            self.assertEqual(loaded(), ["demo"])
            first = draw()
            pictures = [draw(model=name) for name in ("second", "third", "fourth")]
            self.assertEqual(len(set(pictures)), 1, "the same weights draw the same picture")
            self.assertNotIn("demo", loaded())
            self.assertIn("fourth", loaded())
            self.assertEqual(draw(model="demo"), first)
            refused = daemon.generate("a", model="gone")
            self.assertEqual(refused.status, 422)
            self.assertIn("/nonexistent", refused.json["detail"][0]["msg"])
            self.assertEqual(daemon.generate("a", model="none").status, 422)


class Jobs(unittest.TestCase):
    def test_a_job_is_watched_and_another_cancelled(self):
        with Daemon() as daemon:
            daemon.wait_until_ready()

            def submit(**fields):
                answer = daemon.request("POST", "/jobs", json.dumps({"prompt": "a red circle", **fields}))
                self.assertEqual(answer.status, 202, answer.body)
                return answer.json["id"]

            # One in the way, so that the other is seen waiting.
            first, second = submit(**LONG), submit(steps=5, seed=3, count=2)
            daemon.wait_until_drawing()
            watched = Background(daemon.get, f"/jobs/{second}/events")
            self.assertEqual(daemon.get(f"/jobs/{second}").json["position"], 1)
            begin = time.monotonic()
            self.assertEqual(daemon.request("DELETE", f"/jobs/{first}").status, 200)
            daemon.wait_until(lambda: daemon.get(f"/jobs/{first}").json["state"] == "cancelled", 10, "the end of a job")
            job = daemon.get(f"/jobs/{first}").json
            self.assertLess(job["step"], job["steps"])
            self.assertLess(time.monotonic() - begin, 10)

            answer = watched.result()
            self.assertEqual(answer.headers["Content-Type"], "text/event-stream")
            names = re.findall(r"^event: (\w+)$", answer.body.decode(), re.MULTILINE)
            self.assertEqual(names[-1], "completed")
            self.assertLessEqual(set(names), {"queued", "position", "step", "completed"})
            self.assertGreater(names.count("step"), 1)
            job = daemon.get(f"/jobs/{second}").json
            self.assertEqual((job["state"], job["step"], job["steps"]), ("completed", 10, 10))
            self.assertEqual([image["seed"] for image in job["images"]], [3, 4])
            for image in job["images"]:
                PNG(daemon.get(image["url"]).body)
            # The same again by itself: seeds count up.
            single = daemon.generate("a red circle", steps=5, seed=4)
            self.assertEqual(
                daemon.get("/download/" + single.json["download_id"]).body, daemon.get(job["images"][1]["url"]).body
            )
            self.assertEqual(daemon.get("/jobs/" + single.headers["X-Job-Id"]).json["state"], "completed")
            listed = daemon.get("/jobs?state=completed").json["jobs"]
            self.assertEqual([job["id"] for job in listed], [single.headers["X-Job-Id"], second])


class Queueing(unittest.TestCase):
    def test_a_full_queue_says_when_to_come_back(self):
        with Daemon("queue: {capacity: 1}\n") as daemon:
            daemon.wait_until_ready()
            accepted = [Background(daemon.generate, "a red heart", **LONG)]
            daemon.wait_until_drawing()
            accepted.append(Background(daemon.generate, "a blue star", steps=2))
            daemon.wait_until(lambda: daemon.metric("diffused_queue_depth") == 1, 10, "a waiting job")
            refused = daemon.generate("a green cross", steps=2)
            self.assertEqual(refused.status, 503)
            self.assertGreaterEqual(int(refused.headers["Retry-After"]), 1)
            self.assertIsInstance(refused.json["detail"], str)
            self.assertEqual([request.result().status for request in accepted], [200, 200])


class Stopping(unittest.TestCase):
    def test_sigterm_finishes_the_picture_and_refuses_new_ones(self):
        with Daemon() as daemon:
            daemon.wait_until_ready()
            drawing = Background(daemon.generate, "a red heart", **LONG)
            daemon.wait_until_drawing()
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_until(lambda: daemon.notified("STOPPING=1"), 5, "STOPPING=1")
            try:
                self.assertEqual(daemon.generate("a blue star", steps=1).status, 503)
            except ConnectionRefusedError:
                # It may have stopped listening already; a new request is refused either way.
                pass
            answer = drawing.result()
            self.assertEqual(answer.status, 200, answer.body)
            self.assertEqual(daemon.process.wait(30), 0, daemon.output())
            # The picture is on disk: a new daemon on the same directory hands it out.
            daemon.start()
            daemon.wait_until_ready()
            picture = daemon.get(f"/download/{answer.json['download_id']}")
            PNG(picture.body)
            self.assertEqual(daemon.end(), 0)

    def test_sigint_stops_it_too(self):
        with Daemon() as daemon:
            daemon.wait_until_ready()
            self.assertEqual(daemon.end(signal.SIGINT, timeout=10), 0)

    def test_sigterm_while_starting(self):
        with Daemon() as daemon:
            time.sleep(0.2)
            self.assertIn(daemon.end(timeout=60), (0, -signal.SIGTERM))
            self.assertNotIn("Fatal error", daemon.output())

    def test_sigkill_leaves_no_half_picture(self):
        with Daemon() as daemon:
            for delay in (0.05, 0.2, 0.4):
                daemon.wait_until_ready()
                requests = [
                    Background(daemon.generate, "a red heart", steps=1, width=256, height=256) for _ in range(8)
                ]
                time.sleep(delay)
                daemon.end(signal.SIGKILL)
                for request in requests:
                    request.thread.join(10)
                for file in daemon.pictures.rglob("*.png"):
                    PNG(file.read_bytes())
                daemon.start()
            daemon.wait_until_ready()
            self.assertEqual(daemon.generate("a red heart", steps=1).status, 200)


class Starting(unittest.TestCase):
    def assert_does_not_start(self, daemon, status, *words):
        with daemon:
            self.assertEqual(daemon.process.wait(60), status, daemon.output())
            self.assertEqual(daemon.notified("READY=1"), [])
            for word in words:
                self.assertIn(word, daemon.output())

    def test_a_wrong_configuration_is_located(self):
        for text, line, word in (
            ("nonsense: 1\n", 4, "nonsense"),
            ("queue: {capacity: many}\n", 4, "capacity"),
            ("queue: {capacity: 0}\n", 4, "capacity"),
            ("precision: float7\n", 4, "precision"),
            ("queue: {capacity: 1\n", None, "config.yaml"),
            ("server: {port: 1}\n", 4, "server"),
        ):
            with self.subTest(text=text):
                place = f"config.yaml:{line}:" if line else "config.yaml:"
                self.assert_does_not_start(Daemon(text), 2, place, word)

    def test_a_missing_configuration_is_named(self):
        result = run("serve", "--config", "/nonexistent/config.yaml")
        self.assertEqual(result.returncode, 2)
        self.assertIn("/nonexistent/config.yaml", result.stderr)

    def test_damaged_models_are_named(self):
        source = REPOSITORY / "Models/demo"
        weights = "unet/diffusion_pytorch_model.safetensors"
        with tempfile.TemporaryDirectory() as directory:
            model = Path(directory) / "model"
            shutil.copytree(source, model)

            def check(*words):
                with Daemon(model=model) as daemon:
                    self.assertNotEqual(daemon.process.wait(60), 0, daemon.output())
                    self.assertEqual(daemon.notified("READY=1"), [])
                    for word in words:
                        self.assertIn(word, daemon.output())

            with self.subTest("truncated weights"):
                (model / weights).write_bytes((source / weights).read_bytes()[:1_000_000])
                check(weights.split("/")[1])
            with self.subTest("no weights"):
                (model / weights).unlink()
                check("unet")
            with self.subTest("a configuration that does not fit the weights"):
                shutil.copy(source / weights, model / weights)
                config = json.loads((source / "unet/config.json").read_text())
                config["block_out_channels"] = [64, 96, 96]
                (model / "unet/config.json").write_text(json.dumps(config))
                check("unet", "down_blocks")
            with self.subTest("no model"):
                shutil.rmtree(model)
                check(str(model))

    def test_no_device_says_how_to_get_one(self):
        with tempfile.TemporaryDirectory() as empty:
            daemon = Daemon(environment={"OCL_ICD_VENDORS": empty})
            self.assert_does_not_start(daemon, 1, "pocl-opencl-icd")

    def test_a_port_in_use_is_named(self):
        daemon = Daemon()
        with socket.socket() as other:
            other.bind(("127.0.0.1", daemon.port))
            other.listen()
            self.assert_does_not_start(daemon, 1, str(daemon.port))


class Commands(unittest.TestCase):
    def setUp(self):
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def test_generate_writes_a_picture(self):
        output = self.directory / "picture.png"
        result = run(
            "generate", "--model", REPOSITORY / "Models/demo", "--prompt", "a red circle on a blue background",
            "--steps", 5, "--seed", 3, "--output", output,
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        picture = PNG(output.read_bytes())
        self.assertEqual((picture.width, picture.height), (64, 64))
        self.assertIn("Seed: 3", picture.text["parameters"])

    def test_devices_lists_what_there_is(self):
        result = run("devices")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreater(len(result.stdout.splitlines()), 1)

    def test_check_config(self):
        good = self.directory / "good.yaml"
        good.write_text("queue: {capacity: 3}\n")
        self.assertEqual(run("check-config", good).returncode, 0)
        bad = self.directory / "bad.yaml"
        bad.write_text("queue: {capacity: 3}\nqueue: {capacity: 4}\n")
        result = run("check-config", bad)
        self.assertEqual(result.returncode, 2)
        self.assertIn("bad.yaml:2:", result.stderr)
        self.assertEqual(run("check-config", REPOSITORY / "config.yaml").returncode, 0)

    def test_benchmark_prints_one_object(self):
        result = run("benchmark", "--model", REPOSITORY / "Models/demo", "--steps", 2, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        keys = {
            "device", "precision", "width", "height", "text_encoder_seconds", "unet_step_seconds", "vae_decode_seconds",
            "total_seconds", "load_seconds", "peak_device_bytes", "peak_resident_bytes",
        }  # fmt: skip
        self.assertLessEqual(keys, set(json.loads(result.stdout)))

    def test_wrong_usage_exits_2(self):
        for arguments in (
            ["nonsense"],
            ["generate"],
            ["generate", "--prompt", "a", "--steps", "many"],
            ["generate", "--prompt", "a", "--width", "65"],
            ["generate", "--prompt", "a", "--sampler", "nonsense"],
            ["serve", "--nonsense"],
        ):
            with self.subTest(arguments=arguments):
                result = run(*arguments)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertNotEqual(result.stderr.strip(), "")


if __name__ == "__main__":
    unittest.main()
