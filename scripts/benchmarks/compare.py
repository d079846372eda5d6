#!/usr/bin/env python3
"""Times diffused against diffusers on PyTorch and against OpenVINO: the same model, shapes and sampler, one after the other within each round.

scripts/benchmarks/compare builds diffused, sees to the Python packages, and calls this. Every engine but diffused is a process that stays
alive between rounds as long as there is memory for it; diffused is a new `diffused benchmark` each round. Of all rounds the best time
counts, for every engine, as other work on a machine only ever makes times longer. Standard library only.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from random_model import cache_directory, cached_model  # noqa: E402

PARTS = {"text": "text encoder, 2 prompts", "unet": "UNet step", "vae": "VAE decode"}

# Name: engine of worker.py and precision; channels last where the name says so.
PROCESSOR = {
    "pytorch-float32": ("torch", "float32"),
    "pytorch-bfloat16": ("torch", "bfloat16"),
    "openvino-float32": ("openvino", "float32"),
    "openvino-bfloat16": ("openvino", "bfloat16"),
}
GPU = {
    "pytorch-cuda-float32": ("torch-cuda", "float32"),
    "pytorch-cuda-float16": ("torch-cuda", "float16"),
    "pytorch-cuda-float16-channels-last": ("torch-cuda", "float16"),
}
# Run when asked for only.
OTHERS = {
    "pytorch-float32-channels-last": ("torch", "float32"),
    "pytorch-bfloat16-channels-last": ("torch", "bfloat16"),
}
DIFFUSED = {f"diffused-{precision}": ("diffused", precision) for precision in ("float32", "float16", "bfloat16")}
ALL = {**PROCESSOR, **GPU, **OTHERS, **DIFFUSED}


class Unavailable(Exception):
    """Why an engine cannot be measured here."""


def available_bytes():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


class Worker:
    """A worker.py process."""

    alive = []  # least recently used first

    def __init__(self, name, settings):
        self.name, self.settings, self.process = name, settings, None
        self.engine, self.precision = ALL[name]
        self.facts = {}

    def command(self):
        command = [self.settings.python, HERE / "worker.py", self.engine, "--model", self.settings.model]
        command += ["--precision", self.precision, "--size", self.settings.size, "--ir", self.settings.ir]
        return command + (["--channels-last"] if self.name.endswith("channels-last") else [])

    def start(self):
        while Worker.alive and available_bytes() < self.settings.memory * 2**30:
            Worker.alive[0].stop()
        self.process = subprocess.Popen(
            [str(word) for word in self.command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.settings.log,
            text=True,
        )
        Worker.alive.append(self)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, args=(self.process, self.lines), daemon=True).start()
        facts = self.answer(self.settings.limit)
        # The load that counts is the best one, as all times.
        facts["load_seconds"] = min(facts["load_seconds"], self.facts.get("load_seconds", float("inf")))
        self.facts.update(facts)
        for part in PARTS:
            self.ask(part)

    @staticmethod
    def read(process, lines):
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def answer(self, limit):
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            self.stop()
            raise Unavailable(f"took longer than the limit of {limit:.0f} s") from None
        if line is None:
            self.stop()
            raise Unavailable("its process ended; see the log")
        answer = json.loads(line)
        if "error" in answer:
            self.stop()
            raise Unavailable(answer["error"])
        return answer

    def ask(self, request, limit=None):
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except OSError:
            self.stop()
            raise Unavailable("its process ended; see the log") from None
        return self.answer(limit or self.settings.limit)

    def measure(self):
        if self.process is None:
            self.start()
        Worker.alive.remove(self)
        Worker.alive.append(self)
        times = {part: self.ask(part)["seconds"] for part in PARTS}
        self.facts.update(self.ask("memory"))
        return times

    def image(self, steps):
        if self.process is None:
            self.start()
        return self.ask(f"image {steps}", self.settings.limit * (steps + 2))["seconds"]

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if self in Worker.alive:
            Worker.alive.remove(self)


class Diffused:
    """`diffused benchmark`, a process a round."""

    def __init__(self, name, settings):
        self.name, self.settings = name, settings
        _, self.precision = ALL[name]
        self.facts = {"load_seconds": float("inf"), "peak_resident_bytes": 0}
        self.total = None

    def measure(self, steps=None):
        settings = self.settings
        steps = steps or settings.diffused_steps
        width, height = settings.size.split("x")
        command = [settings.binary, "benchmark", "--config", settings.config, "--model", settings.model, "--json"]
        command += ["--precision", self.precision, "--width", width, "--height", height, "--steps", steps]
        try:
            # A warm-up step, the steps and four decodes.
            run = subprocess.run(
                [str(word) for word in command],
                stdout=subprocess.PIPE,
                stderr=settings.log,
                timeout=settings.limit * (steps + 5),
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"took longer than {error.timeout:.0f} s") from None
        if run.returncode != 0:
            raise Unavailable(f"`diffused benchmark` failed with status {run.returncode}; see the log")
        report = json.loads(run.stdout)
        self.total = report["total_seconds"]
        self.facts["load_seconds"] = min(self.facts["load_seconds"], report["load_seconds"])
        for key in ("peak_resident_bytes", "peak_device_bytes"):
            self.facts[key] = max(self.facts.get(key, 0), report[key])
        self.facts["device"] = report["device"]
        self.facts["version"] = settings.diffused_version
        return {
            "text": report["text_encoder_seconds"],
            "unet": report["unet_step_seconds"],
            "vae": report["vae_decode_seconds"],
        }

    def image(self, steps):
        self.measure(steps)
        return self.total

    def stop(self):
        pass


def output(*command):
    """The standard output of a command, empty if it fails or is not there."""
    try:
        run = subprocess.run(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def machine():
    """Lines that say what this was measured on."""
    info = pathlib.Path("/proc/cpuinfo").read_text()

    def field(name):
        return next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith(name)), "unknown")

    flags = set(field("flags").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    system = dict(
        line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    lines = [
        f"processor: {field('model name')}, {len(os.sched_getaffinity(0))} cores for this process, "
        f"{memory:.0f} GiB; "
        + ", ".join(f"{name} {'yes' if name in flags else 'no'}" for name in wanted),
        f"system: {system.get('PRETTY_NAME', platform.system()).strip(chr(34))}, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        "load average at the start: " + " ".join(f"{load:.2f}" for load in os.getloadavg()),
    ]
    gpu = output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return lines + ([f"GPU: {gpu}"] if gpu else [])


def prepare_openvino(settings, candidates, skipped):
    """Converts the networks, once for a model and size; without them no OpenVINO row."""
    names = [name for name in candidates if ALL[name][0] == "openvino"]
    if not names or pathlib.Path(settings.ir, "complete").exists():
        return
    print("converting the networks for OpenVINO (once)", file=sys.stderr)
    command = [settings.python, HERE / "worker.py", "convert", "--model", settings.model, "--size", settings.size]
    try:
        run = subprocess.run(
            [str(word) for word in command + ["--ir", settings.ir]],
            stdout=subprocess.PIPE,
            stderr=settings.log,
            timeout=settings.limit * 10,
        )
        answer = json.loads(run.stdout or b"{}") if run.returncode == 0 else {"error": "the conversion failed; see the log"}
    except subprocess.TimeoutExpired:
        answer = {"error": f"the conversion took longer than {settings.limit * 10:.0f} s"}
    if "error" in answer:
        for name in names:
            skipped[name] = answer["error"]
            candidates.remove(name)


def table(results, settings):
    """The Markdown table, and what its ratios refer to."""
    pytorch = [name for name in results if name.startswith("pytorch")]
    base = next((name for name in ("pytorch-float32", "pytorch-cuda-float32") if name in results), None)
    columns = list(PARTS) + ["image"]
    best = {part: min((results[name][part] for name in pytorch if part in results[name]), default=None) for part in columns}
    heads = [*PARTS.values(), f"whole image, {settings.steps} steps" + (" (computed)" if settings.quick else "")]
    lines = ["| | " + " | ".join(heads) + " | load | peak resident | peak on the device |", "|---" * (len(heads) + 4) + "|"]
    for name, times in results.items():
        cells = [f"{times[part]:.3g} s" if part in times else "-" for part in columns]
        memory = [f"{times[key] / 2**30:.2f} GiB" if times.get(key) else "-" for key in ("peak_resident_bytes", "peak_device_bytes")]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{times['load']:.1f} s", *memory]) + " |")
    for title, reference in ((f"ratio to {base}", results.get(base, {})), ("ratio to the best PyTorch", best)):
        if not any(reference.get(part) for part in columns):
            continue
        lines += ["", f"| {title} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name, times in results.items():
            cells = [
                f"{times[part] / reference[part]:.2f}" if part in times and reference.get(part) else "-"
                for part in columns
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def report(results, facts, skipped, rounds, lines, settings):
    """The whole report as Markdown."""
    now = datetime.datetime.now(datetime.timezone.utc)
    text = [f"# diffused beside PyTorch and OpenVINO, {now:%Y-%m-%d}", ""]
    text.append(
        f"{settings.what}, {settings.size}, batch of two (guidance), DDIM. "
        f"Measured by `scripts/benchmarks/compare` on {now:%Y-%m-%d %H:%M} UTC in one run, one engine after the other in each "
        f"round; the best of {rounds} rounds. `diffused benchmark` gives medians, of which the best round counts."
    )
    if settings.quick:
        text.append(
            f"The whole image is computed: the text encoder, {settings.steps} times the UNet step and the VAE decode."
        )
    text += ["", *(f"- {line}" for line in lines)]
    text += [f"- {name}: {fact.get('version', '')}, {fact.get('device', '')}" + (f", {fact['threads']} threads" if "threads" in fact else "")
             for name, fact in facts.items()]
    text += [f"- not measured: {name}: {reason}" for name, reason in skipped.items()]
    text += ["", *table(results, settings), ""]
    return "\n".join(text)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/benchmarks/compare",
        description=__doc__.splitlines()[0],
        epilog="Engines: " + ", ".join(ALL) + ". Default: those with float32 and bfloat16 on the processor, or with an NVIDIA GPU those "
        "on the GPU, and diffused in all precisions. With --python (or DIFFUSED_PYTHON) the packages are those of that interpreter; "
        "else they are installed into ~/.cache/diffused/compare-venv.",
    )
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="NAMES", help="the engines to measure, separated by commas; the beginning of names means all that begin so")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all engines (default 3)")
    parser.add_argument("--quick", action="store_true", help="compute the whole image from its parts instead of drawing it")
    parser.add_argument("--steps", type=int, default=20, help="steps of the whole image (default 20)")
    parser.add_argument("--size", default="512x512", help="WIDTHxHEIGHT in pixels, multiples of 64 (default 512x512)")
    parser.add_argument("--model", help="a diffusers folder; default: a random one of Stable Diffusion 1.5's size, kept in ~/.cache/diffused")
    parser.add_argument("--platform", default="auto", help="part of the OpenCL platform's name that diffused runs on (default: the best device)")
    parser.add_argument("--limit", type=float, default=180, help="seconds that one step, decode or load may take; an engine beyond it is left out (default 180)")
    parser.add_argument("--memory", type=float, default=9, help="GiB that have to be free before another engine is started, else one that waits is ended (default 9)")
    parser.add_argument("--report", metavar="FILE", help="write the report there, as Markdown")
    parser.add_argument("--log", default=os.devnull, help="where the engines' own messages go (default: nowhere)")
    settings = parser.parse_args()
    try:
        width, height = (int(side) for side in settings.size.split("x"))
    except ValueError:
        parser.error(f"--size: found {settings.size}, allowed is WIDTHxHEIGHT")
    if width < 64 or height < 64 or width % 64 or height % 64:
        parser.error(f"--size: found {settings.size}, allowed are multiples of 64")
    if settings.rounds < 1 or settings.steps < 1:
        parser.error("--rounds and --steps are at least 1")
    return parser, settings


def main():
    parser, settings = parse_arguments()
    settings.python = sys.executable
    settings.diffused_steps = 3
    settings.log = open(settings.log, "a")
    random = "Random weights of Stable Diffusion 1.5's size (float16 file)"
    settings.what = f"The model {pathlib.Path(settings.model).name}" if settings.model else random
    settings.model = pathlib.Path(settings.model) if settings.model else cached_model()
    if settings.only:
        wanted = settings.only.split(",")
        chosen = {prefix: [prefix] if prefix in ALL else [name for name in ALL if name.startswith(prefix)] for prefix in wanted}
        for prefix, names in chosen.items():
            if not names:
                parser.error(f"--only: there is no engine {prefix}; there are: {', '.join(ALL)}")
        candidates = [name for name in ALL if any(name in names for names in chosen.values())]
    else:
        candidates = [*(GPU if output("nvidia-smi", "-L") else PROCESSOR), *DIFFUSED]
    settings.diffused_version = "diffused " + output(settings.binary, "--version")
    revision = output("git", "-C", ROOT, "describe", "--always", "--dirty")
    if revision:
        settings.diffused_version += f" ({revision})"

    lines, skipped = machine(), {}
    # Converted networks are kept in the cache, by the model's place and date and by size.
    model = settings.model.resolve()
    key = hashlib.sha256(f"{model} {model.stat().st_mtime_ns} {settings.size}".encode()).hexdigest()[:16]
    settings.ir = cache_directory() / "openvino" / key
    prepare_openvino(settings, candidates, skipped)
    with tempfile.TemporaryDirectory() as folder:
        settings.config = pathlib.Path(folder, "config.yaml")
        settings.config.write_text(f"device: {{platform: {settings.platform}}}\nlog: {{level: warning}}\n")
        engines = {name: (Diffused if ALL[name][0] == "diffused" else Worker)(name, settings) for name in candidates}
        results = {}
        try:
            for round_ in range(1, settings.rounds + 1):
                for name, engine in list(engines.items()):
                    start = time.monotonic()
                    try:
                        times = engine.measure()
                    except Unavailable as error:
                        skipped[name] = f"{error}" + (f" (in round {round_})" if round_ > 1 else "")
                        engines.pop(name)
                        print(f"{name}: {error}", file=sys.stderr)
                        continue
                    kept = results.setdefault(name, {})
                    for part, seconds in times.items():
                        kept[part] = min(seconds, kept.get(part, seconds))
                    shown = ", ".join(f"{PARTS[part]} {seconds:.3g} s" for part, seconds in times.items())
                    print(f"round {round_}: {name}: {shown}  ({time.monotonic() - start:.0f} s)", file=sys.stderr)
            for name, kept in results.items():
                kept["image"] = kept["text"] + settings.steps * kept["unet"] + kept["vae"]
                if not settings.quick and name in engines:
                    try:
                        kept["image"] = engines[name].image(settings.steps)
                        print(f"{name}: whole image {kept['image']:.3g} s", file=sys.stderr)
                    except Unavailable as error:
                        del kept["image"]
                        skipped[f"{name}, whole image"] = str(error)
        finally:
            for engine in engines.values():
                engine.stop()
        everyone = {name: engines[name].facts for name in results if name in engines}
    for name, facts in everyone.items():
        results[name]["load"] = facts["load_seconds"]
        for key in ("peak_resident_bytes", "peak_device_bytes"):
            results[name][key] = facts.get(key, 0)
    results = {name: times for name, times in results.items() if name in everyone}
    text = report(results, everyone, skipped, settings.rounds, lines, settings)
    print(text)
    if settings.report:
        pathlib.Path(settings.report).write_text(text)
    if not results:
        sys.exit("error: nothing could be measured")


if __name__ == "__main__":
    main()
