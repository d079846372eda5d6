#!/usr/bin/env python3
"""A model folder of Stable Diffusion 1.5's size with random weights, for comparisons and benchmarks: diffusers' layout, float16, 2 GB.
With --xl one of Stable Diffusion XL's size, 7 GB.

    python3 scripts/random_model.py [--xl] FOLDER

Needs nothing but Python and Models/demo, whose tokenizer and schedule it copies, so that it also runs on a machine that has neither PyTorch
nor numpy. The same numbers every time. Every matrix has a standard deviation that keeps the scale of what it multiplies, and the decoder's
last convolution a little more: pictures then use the whole 8-bit range, as a flat picture would hide every difference.
"""

import json
import math
import os
import pathlib
import random
import shutil
import struct
import sys
import zlib

DEMO = pathlib.Path(__file__).resolve().parent.parent / "Models/demo"

# What differs from the demo model's configuration.
UNET = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "layers_per_block": 2,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 512}
TEXT_ENCODER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}

# Likewise for Stable Diffusion XL.
XL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "use_linear_projection": True,
}
XL_VAE = {**VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
XL_TEXT_ENCODER_2 = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
XL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}

# Standard normal numbers that all tensors are cut from, each beginning at another one; a prime number of them, so that no two rows of a
# matrix are the same.
PERIOD = 131071


class Tensors:
    """Names and shapes of tensors, each with the standard deviation and the mean of its elements."""

    def __init__(self):
        self.list = []

    def add(self, name, shape, deviation, mean=0.0):
        self.list.append((name, shape, deviation, mean))

    def affine(self, name, shape, bias=True, gain=1.0):
        """A convolution or a linear layer; biases are spread as PyTorch spreads them."""
        scale = math.prod(shape[1:]) ** -0.5
        self.add(name + ".weight", shape, gain * scale)
        if bias:
            self.add(name + ".bias", shape[:1], scale / math.sqrt(3))

    def norm(self, name, channels):
        self.add(name + ".weight", [channels], 0.0, mean=1.0)
        self.add(name + ".bias", [channels], 0.0)

    def resnet(self, name, inputs, outputs, time=None):
        self.norm(name + ".norm1", inputs)
        self.affine(name + ".conv1", [outputs, inputs, 3, 3])
        if time:
            self.affine(name + ".time_emb_proj", [outputs, time])
        self.norm(name + ".norm2", outputs)
        self.affine(name + ".conv2", [outputs, outputs, 3, 3])
        if inputs != outputs:
            self.affine(name + ".conv_shortcut", [outputs, inputs, 1, 1])

    def transformer(self, name, channels, context, depth, is_linear):
        projection = [channels, channels] if is_linear else [channels, channels, 1, 1]
        self.norm(name + ".norm", channels)
        self.affine(name + ".proj_in", projection)
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            for attention, width in (("attn1", channels), ("attn2", context)):
                self.affine(f"{block}.{attention}.to_q", [channels, channels], bias=False)
                for part in ("to_k", "to_v"):
                    self.affine(f"{block}.{attention}.{part}", [channels, width], bias=False)
                self.affine(f"{block}.{attention}.to_out.0", [channels, channels])
            for index in (1, 2, 3):
                self.norm(f"{block}.norm{index}", channels)
            self.affine(f"{block}.ff.net.0.proj", [8 * channels, channels])
            self.affine(f"{block}.ff.net.2", [channels, 4 * channels])
        self.affine(name + ".proj_out", projection)


def unet_tensors(config):
    """The tensors of diffusers' UNet2DConditionModel."""
    t = Tensors()
    channels, layers, context = config["block_out_channels"], config["layers_per_block"], config["cross_attention_dim"]
    depths, is_linear = config["transformer_layers_per_block"], config["use_linear_projection"]
    depths = depths if isinstance(depths, list) else [depths] * len(channels)
    time = 4 * channels[0]
    if config["addition_embed_type"]:
        t.affine("add_embedding.linear_1", [time, config["projection_class_embeddings_input_dim"]])
        t.affine("add_embedding.linear_2", [time, time])
    t.affine("time_embedding.linear_1", [time, channels[0]])
    t.affine("time_embedding.linear_2", [time, time])
    t.affine("conv_in", [channels[0], config["in_channels"], 3, 3])
    skips, width = [channels[0]], channels[0]
    for level, kind in enumerate(config["down_block_types"]):
        block = f"down_blocks.{level}"
        for layer in range(layers):
            t.resnet(f"{block}.resnets.{layer}", width, channels[level], time)
            width = channels[level]
            if kind.startswith("CrossAttn"):
                t.transformer(f"{block}.attentions.{layer}", width, context, depths[level], is_linear)
            skips.append(width)
        if level < len(channels) - 1:
            t.affine(f"{block}.downsamplers.0.conv", [width, width, 3, 3])
            skips.append(width)
    for layer in range(2):
        t.resnet(f"mid_block.resnets.{layer}", width, width, time)
    t.transformer("mid_block.attentions.0", width, context, depths[-1], is_linear)
    for index, kind in enumerate(config["up_block_types"]):
        block, level = f"up_blocks.{index}", len(channels) - 1 - index
        for layer in range(layers + 1):
            t.resnet(f"{block}.resnets.{layer}", width + skips.pop(), channels[level], time)
            width = channels[level]
            if kind.startswith("CrossAttn"):
                t.transformer(f"{block}.attentions.{layer}", width, context, depths[level], is_linear)
        if level > 0:
            t.affine(f"{block}.upsamplers.0.conv", [width, width, 3, 3])
    t.norm("conv_norm_out", width)
    t.affine("conv_out", [config["out_channels"], width, 3, 3])
    return t.list


def vae_tensors(config):
    """The tensors of diffusers' AutoencoderKL."""
    t = Tensors()
    channels, layers, latent = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]

    def half(name, inputs, outputs, path, layers, sampler, gain=1.0):
        """Encoder or decoder: the middle comes last in the one and first in the other, which makes no difference to names."""
        first, last = path[0], path[-1]
        t.affine(f"{name}.conv_in", [first, inputs, 3, 3])
        block, width = ("down_blocks" if name == "encoder" else "up_blocks"), first
        for level, outer in enumerate(path):
            for layer in range(layers):
                t.resnet(f"{name}.{block}.{level}.resnets.{layer}", width, outer)
                width = outer
            if level < len(path) - 1:
                t.affine(f"{name}.{block}.{level}.{sampler}.0.conv", [width, width, 3, 3])
        middle = channels[-1]
        for layer in range(2):
            t.resnet(f"{name}.mid_block.resnets.{layer}", middle, middle)
        attention = f"{name}.mid_block.attentions.0"
        t.norm(f"{attention}.group_norm", middle)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            t.affine(f"{attention}.{part}", [middle, middle])
        t.norm(f"{name}.conv_norm_out", last)
        t.affine(f"{name}.conv_out", [outputs, last, 3, 3], gain=gain)

    half("encoder", config["in_channels"], 2 * latent, channels, layers, "downsamplers")
    half("decoder", latent, config["out_channels"], channels[::-1], layers + 1, "upsamplers", gain=1.2)
    t.affine("quant_conv", [2 * latent, 2 * latent, 1, 1])
    t.affine("post_quant_conv", [latent, latent, 1, 1])
    return t.list


def text_encoder_tensors(config):
    """The tensors of transformers' CLIPTextModel, or of that with a projection, with the deviations it starts a training with and no biases."""
    t = Tensors()
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    t.add("text_model.embeddings.token_embedding.weight", [config["vocab_size"], width], 0.02)
    t.add("text_model.embeddings.position_embedding.weight", [config["max_position_embeddings"], width], 0.02)
    residual = width**-0.5 * (2 * layers) ** -0.5
    for index in range(layers):
        layer = f"text_model.encoder.layers.{index}"
        for norm in ("layer_norm1", "layer_norm2"):
            t.norm(f"{layer}.{norm}", width)
        for name, shape, deviation in (
            ("self_attn.q_proj", [width, width], residual),
            ("self_attn.k_proj", [width, width], residual),
            ("self_attn.v_proj", [width, width], residual),
            ("self_attn.out_proj", [width, width], width**-0.5),
            ("mlp.fc1", [inner, width], (2 * width) ** -0.5),
            ("mlp.fc2", [width, inner], residual),
        ):
            t.add(f"{layer}.{name}.weight", shape, deviation)
            t.add(f"{layer}.{name}.bias", shape[:1], 0.0)
    t.norm("text_model.final_layer_norm", width)
    if config["architectures"] == ["CLIPTextModelWithProjection"]:
        t.affine("text_projection", [config["projection_dim"], width], bias=False)
    return t.list


def write_safetensors(path, tensors, normals, blocks):
    """Writes tensors in float16; `blocks` keeps the bytes of all normal numbers by deviation."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _, _ in tensors:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    # The tensors begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, deviation, mean in tensors:
            count = math.prod(shape)
            if deviation == 0:
                file.write(struct.pack("<e", mean) * count)
                continue
            if deviation not in blocks:
                blocks[deviation] = struct.pack(f"<{PERIOD}e", *(deviation * x for x in normals)) * 8
            block, start, remaining = blocks[deviation], 2 * (zlib.crc32(name.encode()) % PERIOD), 2 * count
            while remaining > 0:
                part = block[start : start + remaining]
                file.write(part)
                remaining, start = remaining - len(part), 0


def make_model(folder, demo=DEMO, is_xl=False):
    """Writes the model into a folder, which is there only once it is complete."""
    suffixes = ["", "_2"] if is_xl else [""]
    folder, work = pathlib.Path(folder), pathlib.Path(f"{folder}.{os.getpid()}")
    generator, blocks = random.Random(0), {}
    normals = [generator.gauss(0, 1) for _ in range(PERIOD)]
    for part, changes, tensors, file in (
        ("unet", XL_UNET if is_xl else UNET, unet_tensors, "diffusion_pytorch_model.safetensors"),
        ("vae", XL_VAE if is_xl else VAE, vae_tensors, "diffusion_pytorch_model.safetensors"),
        ("text_encoder", TEXT_ENCODER, text_encoder_tensors, "model.safetensors"),
        ("text_encoder_2", XL_TEXT_ENCODER_2, text_encoder_tensors, "model.safetensors"),
    ):
        if part.endswith("_2") and not is_xl:
            continue
        config = json.loads((demo / part.removesuffix("_2") / "config.json").read_text())
        config.update(changes)
        (work / part).mkdir(parents=True)
        (work / part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_safetensors(work / part / file, tensors(config), normals, blocks)
    shutil.copytree(demo / "scheduler", work / "scheduler")
    for suffix in suffixes:
        shutil.copytree(demo / "tokenizer", work / f"tokenizer{suffix}")
    for name in ("tokenizer_config.json", "special_tokens_map.json") if is_xl else ():
        # OpenCLIP fills up with the token of number 0.
        file = work / "tokenizer_2" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "!"}, indent=2) + "\n")
    index = json.loads((demo / "model_index.json").read_text())
    if is_xl:
        index.update(XL_INDEX)
    (work / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    work.rename(folder)


def cache_directory():
    """Where the scripts keep what can be made again."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "diffused")


def cached_model():
    """The model in the user's cache, made when it is not there yet."""
    folder = cache_directory() / "random-sd15"
    if not (folder / "model_index.json").exists():
        print(f"making a random model of Stable Diffusion 1.5's size (2 GB): {folder}", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_model(folder)
    return folder


if __name__ == "__main__":
    arguments = sys.argv[1:]
    xl = arguments[:1] == ["--xl"]
    if len(arguments) != 1 + xl or arguments[-1].startswith("-"):
        sys.exit("usage: random_model.py [--xl] FOLDER")
    make_model(arguments[-1], is_xl=xl)
