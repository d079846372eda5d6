#!/usr/bin/env python3
"""One engine that scripts/benchmarks/compare.py times: loads the model, then does what it is told, a line of standard input at a time.

    worker.py ENGINE --model FOLDER --precision float32|float16|bfloat16 --size 512x512 [--ir FOLDER]

ENGINE is `torch` (diffusers' pipeline on the processor), `torch-cuda` (on the GPU), `openvino`, or `convert`, which writes the OpenVINO
models of the three networks into --ir and ends. Every answer is one JSON object a line: first what was loaded and how long it took, then
for each of `text`, `unet`, `vae` and `image N` the seconds it took, and for `memory` the most bytes that were resident.
"""

import argparse
import json
import os
import pathlib
import sys
import time

PROMPT = "a red circle on a blue background"
NEGATIVE_PROMPT = "blurry"
GUIDANCE = 7.5


def peak_resident_bytes():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def load_pipeline(model, dtype):
    """diffusers' pipeline with the sampler that diffused is given."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=dtype, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Engine:
    """What the engines have in common: the loop of a generation around three networks, on arrays of the engine's own kind."""

    def __init__(self, width, height):
        self.width, self.height = width, height

    def finish(self):
        """Waits until the device has done what it was given."""

    def seconds(self, run):
        self.finish()
        start = time.perf_counter()
        run()
        self.finish()
        return time.perf_counter() - start

    def image(self, steps):
        states = self.text()
        self.scheduler.set_timesteps(steps)
        latents = self.noise * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            latents = self.step(latents, timestep, states)
        return self.vae(latents)

    def measure(self, request):
        name, *numbers = request.split()
        if name == "memory":
            return {"peak_resident_bytes": peak_resident_bytes(), **self.device_memory()}
        if name == "image":
            return {"seconds": self.seconds(lambda: self.image(int(numbers[0])))}
        if name == "text":
            return {"seconds": self.seconds(self.text)}
        if name == "unet":
            self.scheduler.set_timesteps(20)
            timestep = self.scheduler.timesteps[0]
            return {"seconds": self.seconds(lambda: self.step(self.noise, timestep, self.states))}
        if name == "vae":
            return {"seconds": self.seconds(lambda: self.vae(self.noise))}
        raise ValueError(f"no request {request!r}")

    def device_memory(self):
        return {}


class Torch(Engine):
    """diffusers' modules as its pipeline calls them."""

    def __init__(self, arguments, width, height, device):
        super().__init__(width, height)
        import torch
        from diffusers import StableDiffusionPipeline  # noqa: F401  its import is no part of the load

        self.torch = torch
        torch.set_grad_enabled(False)
        self.device = torch.device(device)
        self.dtype = getattr(torch, arguments.precision)
        start = time.perf_counter()
        self.pipeline = load_pipeline(arguments.model, self.dtype).to(self.device)
        if arguments.channels_last:
            for module in (self.pipeline.unet, self.pipeline.vae):
                module.to(memory_format=torch.channels_last)
        self.finish()
        self.load_seconds = time.perf_counter() - start
        self.scheduler = self.pipeline.scheduler
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 4, height // 8, width // 8, generator=generator)
        self.noise = noise.to(self.device, self.dtype)
        self.ids = self.pipeline.tokenizer(
            [NEGATIVE_PROMPT, PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        self.states = self.text()

    def finish(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def text(self):
        return self.pipeline.text_encoder(self.ids)[0]

    def step(self, latents, timestep, states):
        output = self.pipeline.unet(self.torch.cat([latents] * 2), timestep, encoder_hidden_states=states).sample
        unconditional, conditional = output.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        return self.scheduler.step(guided, timestep, latents).prev_sample

    def vae(self, latents):
        picture = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
        # As the pipeline does: bytes on the host.
        return (picture.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(self.torch.uint8).cpu()

    def device_memory(self):
        if self.device.type != "cuda":
            return {}
        return {"peak_device_bytes": self.torch.cuda.max_memory_allocated()}

    def ready(self):
        import diffusers

        device = self.torch.cuda.get_device_name() if self.device.type == "cuda" else "processor"
        return {
            "version": f"PyTorch {self.torch.__version__}, diffusers {diffusers.__version__}",
            "device": device,
            "threads": self.torch.get_num_threads(),
            "load_seconds": self.load_seconds,
        }


class OpenVINO(Engine):
    """The same networks, compiled by OpenVINO for the processor."""

    def __init__(self, arguments, width, height):
        super().__init__(width, height)
        import numpy
        import openvino
        import torch
        from diffusers import DDIMScheduler
        from transformers import CLIPTokenizer

        self.openvino, self.torch = openvino, torch
        core = openvino.Core()
        self.core = core
        hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[arguments.precision]
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if hint != "f32" and {"bf16": "BF16", "f16": "FP16"}[hint] not in capabilities:
            raise RuntimeError(f"OpenVINO does not compute in {arguments.precision} on this processor ({capabilities})")
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        start = time.perf_counter()
        names = ("text_encoder", "unet", "vae")
        self.networks = {name: core.compile_model(f"{arguments.ir}/{name}.xml", "CPU", options) for name in names}
        self.load_seconds = time.perf_counter() - start
        self.scheduler = DDIMScheduler.from_pretrained(arguments.model, subfolder="scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(arguments.model, subfolder="tokenizer")
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(1, 4, height // 8, width // 8, generator=generator)
        self.ids = tokenizer(
            [NEGATIVE_PROMPT, PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="np"
        ).input_ids.astype(numpy.int64)
        self.scaling = json.loads(pathlib.Path(arguments.model, "vae/config.json").read_text())["scaling_factor"]
        self.states = self.text()

    def text(self):
        return self.networks["text_encoder"](self.ids)[0]

    def step(self, latents, timestep, states):
        doubled = self.torch.cat([latents] * 2).numpy()
        output = self.torch.from_numpy(self.networks["unet"]([doubled, timestep.numpy(), states])[0])
        unconditional, conditional = output.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        return self.scheduler.step(guided, timestep, latents).prev_sample

    def vae(self, latents):
        picture = self.torch.from_numpy(self.networks["vae"]((latents / self.scaling).numpy())[0])
        return (picture / 2 + 0.5).clamp(0, 1).mul(255).round().to(self.torch.uint8)

    def ready(self):
        precision = self.networks["unet"].get_property("INFERENCE_PRECISION_HINT").to_string()
        return {
            "version": f"OpenVINO {self.openvino.__version__.split('-')[0]}",
            "device": f"processor, {precision}",
            "threads": self.networks["unet"].get_property("INFERENCE_NUM_THREADS"),
            "load_seconds": self.load_seconds,
        }


def convert(arguments, width, height):
    """Writes the three networks with static shapes as OpenVINO models with weights in float16, as the checkpoint has them."""
    import openvino
    import torch

    pipeline = load_pipeline(arguments.model, torch.float32)

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = pipeline.text_encoder

        def forward(self, ids):
            return self.network(ids)[0]

    class UNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = pipeline.unet

        def forward(self, sample, timestep, states):
            return self.network(sample, timestep, encoder_hidden_states=states, return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = pipeline.vae

        def forward(self, latents):
            return self.network.decode(latents, return_dict=False)[0]

    latents = torch.zeros(1, 4, height // 8, width // 8)
    width_of_states = pipeline.text_encoder.config.hidden_size
    examples = {
        "text_encoder": (Text(), (torch.zeros(2, 77, dtype=torch.int64),)),
        "unet": (UNet(), (torch.cat([latents] * 2), torch.tensor(1), torch.zeros(2, 77, width_of_states))),
        "vae": (Decoder(), (latents,)),
    }
    folder = pathlib.Path(arguments.ir)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name, (module, inputs) in examples.items():
            shapes = [list(tensor.shape) for tensor in inputs]
            network = openvino.convert_model(module.eval(), example_input=inputs, input=shapes)
            openvino.save_model(network, folder / f"{name}.xml", compress_to_fp16=True)
            del network
    (folder / "complete").touch()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=["torch", "torch-cuda", "openvino", "convert"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--ir", help="folder of the OpenVINO models")
    parser.add_argument("--channels-last", action="store_true", help="PyTorch with channels innermost")
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))

    # Libraries print; the answers keep standard output to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value):
        answers.write(json.dumps(value) + "\n")

    try:
        if arguments.engine == "convert":
            convert(arguments, width, height)
            return answer({})
        if arguments.engine == "openvino":
            engine = OpenVINO(arguments, width, height)
        else:
            engine = Torch(arguments, width, height, "cuda" if arguments.engine == "torch-cuda" else "cpu")
    except Exception as error:  # told to whoever started this, who goes on with the other engines
        return answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
    answer(engine.ready())
    for line in sys.stdin:
        try:
            answer(engine.measure(line))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    main()
