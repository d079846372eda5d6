#!/usr/bin/env python3
"""Compares pictures of diffused with those of diffusers: same weights, prompt, seed, steps and scale.

    python3 -m venv .venv
    .venv/bin/pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy scipy pillow
    .venv/bin/python scripts/compare-with-diffusers.py [--model FOLDER] [--size 136x72] [--steps 4] [--sampler ddim] [--schedule karras] \
        [--platform NAME]...

Without --model a random one of Stable Diffusion 1.5's size is made (scripts/random_model.py; 2 GB, kept in the cache directory). Prints a
line a platform and precision, and fails if the mean difference is beyond BOUNDS.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from fixtures.samplers import FLAGS, SCHEDULERS
from PIL import Image
from random_model import cached_model

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = "a red circle on a blue background"
NEGATIVE_PROMPT = "blurry"

# Largest mean difference of 8-bit pictures from diffusers' float32, in 1/255.
BOUNDS = {"float32": 1.0, "float16": 3.0}


# dpmpp_sde draws its noise elsewhere in diffusers, dpmpp_2s_a it does not have.
SAMPLERS = sorted(SCHEDULERS.keys() - {"dpmpp_sde", "dpmpp_2s_a"})


def reference(model, width, height, steps, scale, seed, sampler, schedule):
    """diffusers' picture on the CPU in float32: [height, width, 3] of 0 ... 255."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    flags = {FLAGS[schedule]: True} if schedule else {}
    if sampler == "dpmpp_2m_sde":
        flags["algorithm_type"] = "sde-dpmsolver++"
    if sampler == "pndm":
        flags["skip_prk_steps"] = True
    pipeline.scheduler = SCHEDULERS[sampler].from_config({**pipeline.scheduler.config, **flags})
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(seed),
        # The pipeline overrides the scheduler's own default.
        eta=0.3 if sampler == "tcd" else 0,
    ).images[0]
    return np.asarray(picture).astype(int)


def ours(binary, model, platform, precision, width, height, steps, scale, seed, sampler, schedule):
    """diffused's picture of the same."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "config.yaml")
        config.write_text(f"device: {{platform: {platform}}}\nlog: {{level: warning}}\n")
        output = pathlib.Path(folder, "picture.png")
        command = [binary, "generate", "--config", config, "--model", model, "--precision", precision]
        command += ["--prompt", PROMPT, "--negative-prompt", NEGATIVE_PROMPT, "--output", output]
        command += ["--width", width, "--height", height, "--steps", steps, "--scale", scale, "--seed", seed]
        command += ["--sampler", sampler, "--schedule", schedule or "auto"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        return np.asarray(Image.open(output)).astype(int)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / ".build/release/diffused", help="the built daemon")
    parser.add_argument("--model", help="a diffusers folder; default: a random one of Stable Diffusion 1.5's size")
    parser.add_argument("--size", default="136x72", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scale", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--schedule", choices=sorted(FLAGS))
    parser.add_argument("--platform", action="append", help="part of an OpenCL platform's name; can be repeated")
    arguments = parser.parse_args()

    model = arguments.model or cached_model()
    width, height = (int(side) for side in arguments.size.split("x"))
    request = (width, height, arguments.steps, arguments.scale, arguments.seed)
    request += (arguments.sampler, arguments.schedule)

    expected = reference(model, *request)
    print(f"{model}, {width}x{height}, {arguments.steps} steps of {arguments.sampler}, scale {arguments.scale}, seed {arguments.seed}")
    print(f"reference uses {expected.min()} ... {expected.max()}, standard deviation {expected.std():.1f}")
    failed = False
    for platform in arguments.platform or ["auto"]:
        for precision in ("float32", "float16", "bfloat16"):
            difference = abs(ours(arguments.binary, model, platform, precision, *request) - expected)
            bound = BOUNDS.get(precision)
            failed |= bound is not None and difference.mean() > bound
            print(f"{platform:10} {precision:9} mean {difference.mean():.5f}  max {difference.max()}"
                  + (f"  (bound {bound})" if bound else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
