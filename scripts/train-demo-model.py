#!/usr/bin/env python3
"""Trains the demo model: a very small latent diffusion model with the architecture of Stable Diffusion 1.x.

CLIP text encoder, cross-attention UNet and AutoencoderKL are trained from scratch, on a CPU, on pictures and captions
that this file makes up. No data set and no pretrained weight is used. The one thing taken from elsewhere is CLIP's
byte-pair vocabulary, so that the tokenizer is the one of every Stable Diffusion 1.x: `bpe_simple_vocab_16e6.txt.gz`,
which the PyPI package open_clip_torch carries.

Set up (tried with these versions):

    python3 -m venv .venv && . .venv/bin/activate
    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 \\
        safetensors==0.8.0 numpy==2.4.6 pillow==13.0.0
    pip install --no-deps open_clip_torch==3.3.0

Every stage reads what the ones before it left in --work. In this order, about an hour on two cores:

    train-demo-model.py tokenizer
    train-demo-model.py vae       --minutes 7.5 --learning-rate 8e-4    autoencoder, mostly on crops
    train-demo-model.py latents   --count 25000                         pictures -> latents and captions
    train-demo-model.py decoder   --minutes 24 --learning-rate 6e-4     more detail; may run beside `unet`
    train-demo-model.py unet      --minutes 25 --learning-rate 8e-4     text encoder and UNet together
    train-demo-model.py unet      --minutes 4.5 --learning-rate 5e-4 --decay 0.8 --seed 6 --resume
    train-demo-model.py export    --model Models/demo                   diffusers folder, float16
    train-demo-model.py evaluate  --model Models/demo                   counts right pictures
    train-demo-model.py sheet     --model Models/demo                   contact sheet with captions

Training is limited by time, not by steps, so two runs differ; seeds fix pictures, captions and the initial weights.
"""

import argparse
import gzip
import importlib.util
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from demo_shapes import COLOURS, DISC_RADIUS, RING_HOLE_RADIUS, SHAPES, count_regions, judge, outline, plural
from PIL import Image, ImageDraw, ImageFont
from torch import nn

COLOUR_NAMES = list(COLOURS)

# Facts of Stable Diffusion 1.x.
VOCABULARY_SIZE = 49408
START_TOKEN = 49406
END_TOKEN = 49407
PROMPT_LENGTH = 77
LATENT_SCALING = 0.18215
TRAINING_TIMESTEPS = 1000

# Facts of this model.
PICTURE_SIZE = 64
TEXT_WIDTH = 32

# ----------------------------------------------------------------------------------------------------------------------
# Scenes, captions, drawing
# ----------------------------------------------------------------------------------------------------------------------

# Edge length of a pixel's grid of samples.
SUPERSAMPLING = 4

PLACES = {
    "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
    "in the center": (0.5, 0.5),
    "in the middle": (0.5, 0.5),
    "in the top left corner": (0.25, 0.25),
    "in the top right corner": (0.75, 0.25),
    "in the bottom left corner": (0.25, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}

CAPTION_STARTS = [
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "a painting of ",
    "a photo of ",
    "an illustration of ",
]

# Half-extents of a shape as fractions of the picture.
SINGLE_RADII = {"": (0.21, 0.30), "small": (0.12, 0.16), "large": (0.34, 0.41), "big": (0.34, 0.41)}
PAIR_RADII = {"": (0.16, 0.20), "small": (0.10, 0.125), "large": (0.215, 0.24)}

RELATION_WORDS = {
    "above": ["above", "over", "on top of"],
    "below": ["below", "under"],
    "left": ["to the left of", "left of"],
    "right": ["to the right of", "right of"],
    "and": ["and", "next to"],
}


def with_article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrase(*words):
    """The words that are not empty, with an article in front."""
    return with_article(" ".join(word for word in words if word))


def shape_mask(shape, x, y, radius, size):
    """Coverage, 0 to 1, of each pixel of a square picture; centre and half-extent in fractions of the picture."""
    canvas_size = size * SUPERSAMPLING
    canvas = Image.new("L", (canvas_size, canvas_size), 0)
    draw = ImageDraw.Draw(canvas)
    x, y, radius = x * canvas_size, y * canvas_size, radius * canvas_size

    def disc(factor, fill):
        r = radius * factor
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    if shape in ("circle", "ring"):
        disc(DISC_RADIUS, 255)
        if shape == "ring":
            disc(RING_HOLE_RADIUS, 0)
    else:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in outline(shape)], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def jittered(rng, colour, amount=6):
    """A colour's RGB values, each moved by up to `amount`."""
    return np.clip(np.array(COLOURS[colour], np.float32) + rng.uniform(-amount, amount, 3), 0, 255)


def render(scene, size, rng):
    """Draws a scene; returns bytes [size, size, 3]."""
    kind, *colours = scene["background"]
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    first = jittered(rng, colours[0])
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = first
    if kind == "gradient":  # from top to bottom
        weight = (rows / (size - 1))[..., None]
        picture = first * (1 - weight) + jittered(rng, colours[1]) * weight
    elif kind == "stripes":  # four pairs
        pairs = 4
        phase = (columns if scene["vertical"] else rows) / size * pairs
        picture = np.where(((phase % 1) < 0.5)[..., None], first, jittered(rng, colours[1])).astype(np.float32)
    for thing in scene["objects"]:
        # Drawn even where "rgb" replaces it, so that the sequence of random numbers does not depend on it.
        colour = jittered(rng, thing["colour"])
        mask = shape_mask(thing["shape"], thing["x"], thing["y"], thing["radius"], size)[..., None]
        picture = picture * (1 - mask) + thing.get("rgb", colour) * mask
    return picture.round().clip(0, 255).astype(np.uint8)


def random_scene(rng):
    """A scene and a caption for it, from a numpy generator."""
    colours = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))]
    background, background_is_named = random_background(rng, colours)
    vertical = bool(rng.random() < 0.5)
    objects, what = random_objects(rng, colours[2:])
    caption = random_caption(rng, what, background, background_is_named)
    return dict(background=background, vertical=vertical, objects=objects), caption


def choice(rng, options):
    return options[int(rng.integers(len(options)))]


def random_background(rng, colours):
    """Takes the background's colours from the front of the list; may move white there."""
    kind_number = rng.random()
    if kind_number >= 0.88:
        return ("gradient" if kind_number < 0.95 else "stripes", colours[0], colours[1]), True
    if rng.random() < 0.10:
        # No background in the caption means a white one.
        colours.remove("white")
        colours.insert(0, "white")
        return ("plain", "white"), False
    return ("plain", colours[0]), True


def random_objects(rng, colours):
    """One shape, several alike, or two different ones in relation; and the words for them."""
    kind_number = rng.random()
    if kind_number < 0.62:
        return random_single(rng, colours[0])
    if kind_number < 0.78:
        return random_several(rng, colours[0])
    return random_pair(rng, colours[0], colours[1])


def random_single(rng, colour):
    shape = choice(rng, SHAPES)
    size = choice(rng, ["", "", "", "small", "large", "big"])
    radius = rng.uniform(*SINGLE_RADII[size])
    place = ""
    if rng.random() < 0.25 and size in ("", "small"):
        place = choice(rng, list(PLACES))
        radius = min(radius, 0.22)
        x, y = (centre + rng.normal(0, 0.015) for centre in PLACES[place])
    else:
        spread = 0.05 if size == "small" else 0.025
        x, y = 0.5 + rng.normal(0, spread), 0.5 + rng.normal(0, spread)
    words = phrase(size, colour, shape) + (" " + place if place else "")
    return [dict(shape=shape, colour=colour, x=x, y=y, radius=radius)], words


def random_several(rng, colour):
    count = 2 if rng.random() < 0.6 else 3
    shape = choice(rng, SHAPES)
    centres = [0.28, 0.72] if count == 2 else [0.2, 0.5, 0.8]
    radius = rng.uniform(0.16, 0.2) if count == 2 else rng.uniform(0.115, 0.14)
    shift = rng.normal(0, 0.02)
    objects = [
        dict(shape=shape, colour=colour, x=x + rng.normal(0, 0.01), y=0.5 + shift, radius=radius) for x in centres
    ]
    return objects, f"{'two' if count == 2 else 'three'} {colour} {plural(shape)}"


def random_pair(rng, first_colour, second_colour):
    shapes = choice(rng, SHAPES), choice(rng, SHAPES)
    relation = choice(rng, ["above", "below", "left", "right", "and"])
    sizes = choice(rng, [("", ""), ("", ""), ("small", "large"), ("large", "small")])
    radii = [rng.uniform(*PAIR_RADII[size]) for size in sizes]
    low, high = 0.5 - 0.235, 0.5 + 0.235
    places = {
        "above": ((0.5, low), (0.5, high)),
        "below": ((0.5, high), (0.5, low)),
        "left": ((low, 0.5), (high, 0.5)),
        "right": ((high, 0.5), (low, 0.5)),
        "and": ((low, 0.5), (high, 0.5)),
    }[relation]
    objects, words = [], []
    for shape, colour, size, (x, y), radius in zip(shapes, (first_colour, second_colour), sizes, places, radii):
        x, y = x + rng.normal(0, 0.015), y + rng.normal(0, 0.015)
        objects.append(dict(shape=shape, colour=colour, x=x, y=y, radius=radius))
        words.append(phrase(size, colour, shape))
    return objects, f"{words[0]} {choice(rng, RELATION_WORDS[relation])} {words[1]}"


def random_caption(rng, what, background, background_is_named):
    kind, *colours = background
    if kind == "gradient":
        form = choice(
            rng,
            [
                " on a {0} to {1} gradient background",
                " on a gradient from {0} to {1}",
                " on a {0} and {1} gradient background",
            ],
        )
        caption = what + form.format(*colours)
    elif kind == "stripes":
        form = choice(
            rng,
            [
                " on a striped {0} and {1} background",
                " on {0} and {1} stripes",
                " on a background of {0} and {1} stripes",
            ],
        )
        caption = what + form.format(*colours)
    elif not background_is_named:
        caption = what
    else:
        form_number, name = rng.random(), colours[0]
        if form_number < 0.6:
            caption = f"{what} on {with_article(name)} background"
        elif form_number < 0.75:
            caption = f"{what} on {name}"
        elif form_number < 0.88:
            caption = f"{what}, {name} background"
        else:
            caption = f"{with_article(name)} background with {what}"
    if rng.random() < 0.15:
        caption = choice(rng, CAPTION_STARTS) + caption
    if rng.random() < 0.15 and caption.split(" ")[0] in ("a", "an"):
        caption = caption.split(" ", 1)[1]
    return caption


def to_tensor(pictures):
    """Pictures as a float tensor [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor):
    """The inverse of to_tensor: bytes [N, H, W, 3]."""
    return ((tensor.permute(0, 2, 3, 1).clamp(-1, 1) + 1) * 127.5).numpy().astype(np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# What the training loops share
# ----------------------------------------------------------------------------------------------------------------------


class Clock:
    """Measures how much of a stage's time is gone, and prints running averages now and then."""

    def __init__(self, name, minutes, report_every):
        self.name, self.seconds, self.report_every = name, minutes * 60, report_every
        self.start = time.time()
        self.steps = 0
        self.averages = {}

    def elapsed(self):
        return time.time() - self.start

    def fraction(self):
        return self.elapsed() / self.seconds

    def step_done(self, **measured):
        self.steps += 1
        for key, value in measured.items():
            value = float(value)
            if not math.isnan(value):
                self.averages[key] = 0.98 * self.averages.get(key, value) + 0.02 * value
        if self.steps % self.report_every == 0:
            values = " ".join(f"{key} {value:.4f}" for key, value in self.averages.items())
            print(f"{self.name} step {self.steps}, {self.fraction():.0%}: {values}", flush=True)


class MovingAverage:
    """Exponential moving average of a model's state, which is what gets saved."""

    def __init__(self, model, state=None):
        self.model = model
        self.state = state or {key: value.clone().float() for key, value in model.state_dict().items()}

    def update(self, decay):
        current = self.model.state_dict()
        keys = [key for key in self.state if self.state[key].is_floating_point()]
        torch._foreach_lerp_([self.state[k] for k in keys], [current[k].float() for k in keys], 1 - decay)


def set_learning_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_atomically(value, path):
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizer
# ----------------------------------------------------------------------------------------------------------------------


def make_tokenizer(options):
    """Writes CLIP's byte-pair vocabulary in the files that CLIPTokenizer reads."""
    # Found, not imported: of the package only this file is needed, and none of what it depends on.
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise SystemExit("the vocabulary is missing: pip install --no-deps open_clip_torch==3.3.0")
    source = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    # A header, then as many merges as fit between the 2 * 256 bytes and the two special tokens.
    merges = lines[1 : VOCABULARY_SIZE - 2 * 256 - 2 + 1]

    # Every byte is written as one printable character: itself, or one from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]

    vocabulary = characters + [c + "</w>" for c in characters] + ["".join(merge.split()) for merge in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    if len(vocabulary) != VOCABULARY_SIZE:
        raise ValueError(f"{len(vocabulary)} tokens instead of {VOCABULARY_SIZE}: is {source} the right file?")

    folder = options.work / "tokenizer"
    folder.mkdir(exist_ok=True)
    ids = {token: number for number, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = dict(
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = dict(
        tokenizer_class="CLIPTokenizer",
        model_max_length=PROMPT_LENGTH,
        do_lower_case=True,
        **special,
        add_prefix_space=False,
        errors="replace",
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(load_tokenizer(options)("a red circle on a blue background").input_ids)


def load_tokenizer(options):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(options.work / "tokenizer")


def tokenize(tokenizer, captions):
    """Token ids [N, 77]."""
    return torch.tensor(
        tokenizer(list(captions), padding="max_length", max_length=PROMPT_LENGTH, truncation=True).input_ids
    )


# ----------------------------------------------------------------------------------------------------------------------
# Autoencoder
# ----------------------------------------------------------------------------------------------------------------------


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=1,
        act_fn="silu",
        sample_size=PICTURE_SIZE,
        scaling_factor=LATENT_SCALING,
    )


def load_vae(options):
    """The autoencoder, with the improved decoder if there is one."""
    vae = make_vae()
    improved = options.work / "vae_decoder.pt"
    vae.load_state_dict(torch.load(improved if improved.exists() else options.work / "vae.pt"))
    return vae.eval()


@torch.no_grad()
def initialise_lanes(vae, constant=8.0):
    """Starts the autoencoder as "average 8 x 8 pixels, then repeat each 8 x 8 times".

    An autoencoder this small, started at random, spends thousands of steps on learning to carry plain colours past its
    group norms. So channels 0 to 7 of every layer start as lanes: 0 and 1 hold +constant and -constant, which keep the
    norms' statistics steady; 2 to 7 hold +R, -R, +G, -G, +B, -B, in pairs, since silu(x) - silu(-x) = x gets past the
    last activation exactly. Every other weight starts at random as usual, and all weights are trained: what is left to
    learn is the detail.
    """
    lanes = 8

    def clear(layer):
        layer.weight[:lanes] = 0
        layer.bias[:lanes] = 0

    def pass_through(conv, taps):
        clear(conv)
        conv.bias[0], conv.bias[1] = constant, -constant
        for lane in range(2, lanes):
            for row, column in taps:
                conv.weight[lane, lane, row, column] = 1 / len(taps)

    ignores_constants = ("conv1", "conv_shortcut", "to_q", "to_k", "to_v", "conv_out")
    for name, module in vae.named_modules():
        if isinstance(module, nn.GroupNorm) and not name.endswith("norm2"):
            # Undoes the norm's scale.
            module.weight.fill_(constant * math.sqrt(2 / module.num_channels))
        if name.endswith(ignores_constants) or ("samplers" in name and hasattr(module, "weight")):
            # The constants feed nothing at first.
            module.weight[:, :2] = 0
        if name.endswith(("conv2", "to_out.0")):
            clear(module)
        elif name.endswith("conv_shortcut"):
            pass_through(module, [(0, 0)])
        elif name.endswith("downsamplers.0.conv"):
            pass_through(module, [(0, 0), (0, 1), (1, 0), (1, 1)])
        elif name.endswith("upsamplers.0.conv"):
            pass_through(module, [(1, 1)])
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        clear(conv)
        conv.bias[0], conv.bias[1] = constant, -constant
        for channel in range(3):
            conv.weight[2 + 2 * channel, channel, 1, 1] = 1
            conv.weight[3 + 2 * channel, channel, 1, 1] = -1
    for conv in (vae.encoder.conv_out, vae.decoder.conv_out):
        conv.weight[:3] = 0
        conv.bias[:3] = 0
        for channel in range(3):
            conv.weight[channel, 2 + 2 * channel, 1, 1] = 1
            conv.weight[channel, 3 + 2 * channel, 1, 1] = -1
    # Little posterior noise at first.
    vae.encoder.conv_out.weight[4:] *= 0.1
    vae.encoder.conv_out.bias[4:] = -6
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:, :, 0, 0] = torch.eye(conv.weight.shape[0])
        conv.bias.zero_()


def random_crops(rng, size, count):
    """Training crops from one scene, preferably showing an edge."""
    scene, _ = random_scene(rng)
    if rng.random() < 0.2:
        # Colours without a name, so that the autoencoder knows more than ten.
        for thing in scene["objects"]:
            thing["rgb"] = rng.uniform(0, 255, 3).astype(np.float32)
    picture_size = int(rng.choice([64, 64, 96]))
    picture, crops = render(scene, picture_size, rng), []
    while len(crops) < count:
        for _ in range(4):
            x = int(rng.integers(0, picture_size - size + 1))
            y = int(rng.integers(0, picture_size - size + 1))
            crop = picture[y : y + size, x : x + size]
            if crop[::4, ::4].std((0, 1)).max() > 8:
                break
        crops.append(crop)
    return crops


def picture_losses(decoded, pictures):
    """Mean absolute, mean squared, and mean absolute gradient difference."""
    difference = decoded.float() - pictures
    edges = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    edges = edges + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return difference.abs().mean(), difference.pow(2).mean(), edges


def cosine_rate(options, clock):
    """Warms up over 50 steps, then falls along a cosine."""
    rate = options.learning_rate * min(1, (clock.steps + 1) / 50)
    return rate * (0.5 + 0.5 * math.cos(math.pi * min(1, clock.fraction()))) + 1e-5


def train_vae(options):
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    vae = make_vae()
    initialise_lanes(vae)
    vae = vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    average = MovingAverage(vae)
    clock = Clock("vae", options.minutes, report_every=25)
    while clock.fraction() < 1:
        set_learning_rate(optimizer, cosine_rate(options, clock))
        # Many cheap steps on crops, and every fourth on whole pictures.
        size, count = (32, 3) if clock.steps % 4 else (64, 1)
        pictures = to_tensor([crop for _ in range(8) for crop in random_crops(rng, size, count)])
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            decoded = vae.decode(latents).sample
        absolute, squared, edges = picture_losses(decoded, pictures)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        optimizer.zero_grad(set_to_none=True)
        (absolute + 2 * squared + edges + 1e-5 * divergence).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        clock.step_done(
            absolute=absolute.detach(), squared=squared.detach(), edges=edges.detach(), divergence=divergence.detach()
        )
        average.update(min(0.995, clock.steps / (clock.steps + 20)))
    vae.load_state_dict(average.state)
    vae.eval()
    standardise_latents(vae, rng)
    save_atomically(vae.state_dict(), options.work / "vae.pt")


@torch.no_grad()
def standardise_latents(vae, rng):
    """Brings the latents to mean 0 and standard deviation 1 / 0.18215 in each channel.

    The affine map is folded into the 1x1 convolutions around the latents, so that Stable Diffusion's usual scaling
    factor is exact.
    """
    pictures = to_tensor([render(random_scene(rng)[0], PICTURE_SIZE, rng) for _ in range(512)])
    means = torch.cat([vae.encode(pictures[i : i + 32]).latent_dist.mean for i in range(0, 512, 32)])
    mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
    factor = 1 / (LATENT_SCALING * deviation)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight /= factor.view(1, -1, 1, 1)
    before.bias[:4] = (before.bias[:4] - mean) * factor
    before.weight[:4] *= factor.view(-1, 1, 1, 1)
    before.bias[4:] += 2 * factor.log()

    posterior = vae.encode(pictures[:64]).latent_dist
    decoded = vae.decode(posterior.mean).sample
    error = ((decoded.clamp(-1, 1) - pictures[:64]) / 2).pow(2).mean().item()
    scaled = posterior.mean * LATENT_SCALING
    print(f"latents: mean {scaled.mean((0, 2, 3)).tolist()}, deviation {scaled.std((0, 2, 3)).tolist()}")
    print(f"reconstruction: PSNR {-10 * math.log10(error):.2f} dB")


def train_decoder(options):
    """Improves the decoder alone; the latents stay as they are.

    A little noise on the latents makes it forgiving towards the small errors of the UNet.
    """
    torch.manual_seed(3)
    rng = np.random.default_rng(options.seed + 100)
    vae = load_vae(options).to(memory_format=torch.channels_last).train()
    for parameter in [*vae.encoder.parameters(), *vae.quant_conv.parameters()]:
        parameter.requires_grad_(False)
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-2)
    average = MovingAverage(vae)
    clock = Clock("decoder", options.minutes, report_every=50)
    while clock.fraction() < 1:
        set_learning_rate(optimizer, cosine_rate(options, clock))
        pictures = to_tensor([render(random_scene(rng)[0], PICTURE_SIZE, rng) for _ in range(8)])
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mean.float()
            amount = torch.rand(len(pictures), 1, 1, 1) * 0.15 / LATENT_SCALING
            latents = latents + amount * torch.randn_like(latents)
            decoded = vae.decode(latents).sample
        absolute, squared, edges = picture_losses(decoded, pictures)
        optimizer.zero_grad(set_to_none=True)
        (absolute + 2 * squared + edges).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        clock.step_done(absolute=absolute.detach(), squared=squared.detach(), edges=edges.detach())
        average.update(min(0.995, clock.steps / (clock.steps + 20)))
    save_atomically(average.state, options.work / "vae_decoder.pt")


@torch.no_grad()
def make_latents(options):
    """Encodes random scenes once, so that the UNet's training does not have to."""
    torch.set_num_threads(1)
    vae = load_vae(options).to(memory_format=torch.channels_last)
    tokenizer = load_tokenizer(options)
    rng = np.random.default_rng(options.seed)
    latents, captions, batch = [], [], 50
    while len(captions) < options.count:
        scenes = [random_scene(rng) for _ in range(batch)]
        pictures = to_tensor([render(scene, PICTURE_SIZE, rng) for scene, _ in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        latents.append((mean * LATENT_SCALING).to(torch.float16))
        captions += [caption for _, caption in scenes]
        if len(captions) % 2500 == 0:
            print(f"{len(captions)} pictures", flush=True)
    ids = tokenize(tokenizer, captions).to(torch.int32)
    save_atomically(dict(latents=torch.cat(latents), ids=ids), options.work / "latents.pt")
    print(f"{len(captions)} pictures, for instance: {captions[:5]}")


# ----------------------------------------------------------------------------------------------------------------------
# Text encoder and UNet
# ----------------------------------------------------------------------------------------------------------------------


def make_text_encoder():
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=START_TOKEN,
            eos_token_id=END_TOKEN,
            pad_token_id=END_TOKEN,
        )
    )


def make_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 64, 96),
        norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def make_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TRAINING_TIMESTEPS,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


@torch.no_grad()
def initialise_identity(unet):
    """Starts the UNet near "the noise is the input".

    Channels 0 to 7 of the first convolution hold +x and -x of the four latent channels, the last skip connection brings
    them to the last resnet, and the last convolution takes their differences.
    """
    first, last, up = unet.conv_in, unet.conv_out, unet.up_blocks[-1]
    resnet, attention, width = up.resnets[-1], up.attentions[-1], unet.config.block_out_channels[0]
    lanes = 8
    for layer in (first, resnet.conv_shortcut):
        layer.weight[:lanes] = 0
        layer.bias[:lanes] = 0
    last.weight *= 0.3
    last.weight[:, :lanes] = 0
    last.bias.zero_()
    for layer in (resnet.conv2, attention.proj_out):
        layer.weight[:lanes] *= 0.1
        layer.bias[:lanes] = 0
    for lane in range(lanes):
        sign = 1 if lane % 2 == 0 else -1
        first.weight[lane, lane // 2, 1, 1] = sign
        resnet.conv_shortcut.weight[lane, resnet.conv_shortcut.in_channels - width + lane] = 1
        last.weight[lane // 2, lane, 1, 1] = 0.9 * sign


def tokens_of_captions(tokenizer):
    """The ids of every token that captions contain, sorted. Training keeps the embeddings of these only."""
    rng = np.random.default_rng(77)
    ids = set(tokenizer("").input_ids)
    for _ in range(4000):
        ids |= set(tokenizer(random_scene(rng)[1]).input_ids)
    return sorted(ids)


def train_unet(options):
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(options.seed)
    tokenizer = load_tokenizer(options)
    data = torch.load(options.work / "latents.pt")
    used = tokens_of_captions(tokenizer)
    position = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
    position[torch.tensor(used)] = torch.arange(len(used))
    empty_prompt = position[tokenize(tokenizer, [""])[0]]

    text_encoder, unet = make_text_encoder(), make_unet()
    text_encoder.set_input_embeddings(nn.Embedding(len(used), TEXT_WIDTH))
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight.normal_(0, 0.3)
        for name, parameter in text_encoder.named_parameters():
            if "position_embedding" in name:
                parameter.normal_(0, 0.1)
    initialise_identity(unet)
    # Plain attention: the fused attention of PyTorch has a very slow backward pass on a CPU.
    unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")

    models = (unet, text_encoder)
    checkpoint = options.work / "unet.pt"
    earlier_steps, average_states = 0, (None, None)
    if options.resume:
        saved = torch.load(checkpoint)
        for model, state in zip(models, saved["raw"]):
            model.load_state_dict(state)
        earlier_steps, average_states = saved["steps"], saved["average"]
    averages = [MovingAverage(model, state) for model, state in zip(models, average_states)]
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)

    alphas_cumprod = make_scheduler().alphas_cumprod
    # Weight min(1 + 1 / SNR, 6) / 2: more on very noisy steps, where the text decides colours and arrangement, which
    # the plain loss nearly ignores.
    loss_weight = (1 + (1 - alphas_cumprod) / alphas_cumprod).clamp(max=6) / 2

    clock = Clock("unet", options.minutes, report_every=50)
    while clock.fraction() < 1:
        warm_up = min(1, (clock.steps + 1) / 100)
        cool_down = min(1, (1 - min(1, clock.fraction())) / options.decay + 0.02)
        set_learning_rate(optimizer, options.learning_rate * warm_up * cool_down)

        chosen = torch.randint(0, len(data["latents"]), (options.batch,))
        latents = data["latents"][chosen].float()
        ids = position[data["ids"][chosen].long()]
        # One caption in ten is dropped, for guidance.
        ids[torch.rand(options.batch) < 0.1] = empty_prompt
        timesteps = (
            (TRAINING_TIMESTEPS * (1 - torch.rand(options.batch) ** 1.5)).long().clamp(0, TRAINING_TIMESTEPS - 1)
        )
        noise = torch.randn_like(latents)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            text = text_encoder(input_ids=ids).last_hidden_state
            predicted = unet(noisy, timesteps, text).sample
        errors = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        loss = (errors * loss_weight[timesteps]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

        errors = errors.detach()
        clock.step_done(loss=loss.detach(), error=errors.mean(), error_when_noisy=errors[timesteps > 700].mean())
        steps = earlier_steps + clock.steps
        for average in averages:
            average.update(min(0.999, (1 + steps) / (20 + steps)))
    save_atomically(
        dict(
            raw=[model.state_dict() for model in models],
            average=[average.state for average in averages],
            used=used,
            steps=earlier_steps + clock.steps,
        ),
        checkpoint,
    )
    print(f"{earlier_steps + clock.steps} steps in all")


# ----------------------------------------------------------------------------------------------------------------------
# Export
# ----------------------------------------------------------------------------------------------------------------------


def export(options):
    """Writes the model as a diffusers folder in the layout of the published Stable Diffusion 1.x folders."""
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file, save_file

    saved = torch.load(options.work / "unet.pt")
    text_encoder, unet = make_text_encoder(), make_unet()
    text_encoder.set_input_embeddings(nn.Embedding(len(saved["used"]), TEXT_WIDTH))
    unet.load_state_dict(saved["average"][0])
    text_encoder.load_state_dict(saved["average"][1])
    embeddings = nn.Embedding(VOCABULARY_SIZE, TEXT_WIDTH)
    with torch.no_grad():
        # Tokens that no caption contains mean nothing.
        embeddings.weight.zero_()
        embeddings.weight[torch.tensor(saved["used"])] = text_encoder.get_input_embeddings().weight
    text_encoder.set_input_embeddings(embeddings)
    pipeline = StableDiffusionPipeline(
        vae=load_vae(options),
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(options),
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    pipeline.save_pretrained(options.model, safe_serialization=True)

    # transformers 5 writes tokenizer.json and leaves out the prefix "text_model."; the published folders have
    # vocab.json, merges.txt and the prefix.
    (options.model / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    for file in (options.work / "tokenizer").iterdir():
        shutil.copy(file, options.model / "tokenizer")
    weights = options.model / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation
# ----------------------------------------------------------------------------------------------------------------------

EVALUATION_STEPS = 25


def load_pipeline(options):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(options.model, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, prompts, guidance, seed, batch):
    """Pictures, bytes [64, 64, 3]; picture i has seed + i."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images = pipeline(
            part,
            num_inference_steps=EVALUATION_STEPS,
            guidance_scale=guidance,
            height=PICTURE_SIZE,
            width=PICTURE_SIZE,
            generator=generators,
            output_type="np",
        ).images
        pictures += [(image * 255).round().astype(np.uint8) for image in images]
    return pictures


def evaluate(options):
    """Counts the right pictures of 60 prompts for one shape, and of 24 each for counts, places and relations."""
    pipeline = load_pipeline(options)
    evaluate_single(pipeline, options)
    evaluate_arrangements(pipeline, options)


def evaluate_single(pipeline, options):
    rng = np.random.default_rng(4242)

    def two_colours():
        return [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))[:2]]

    # The judge itself, on true pictures.
    right, trials = 0, 200
    for trial in range(trials):
        shape, (colour, background) = SHAPES[trial % len(SHAPES)], two_colours()
        thing = dict(shape=shape, colour=colour, x=0.5, y=0.5, radius=rng.uniform(0.2, 0.32))
        scene = dict(background=("plain", background), vertical=False, objects=[thing])
        verdict = judge(PICTURE_SIZE, PICTURE_SIZE, render(scene, PICTURE_SIZE, rng).tobytes())
        right += (verdict.shape, verdict.colour, verdict.background) == (shape, colour, background)
    print(f"the judge on true pictures: {right} of {trials}")

    wanted = [(SHAPES[i % len(SHAPES)], *two_colours()) for i in range(60)]
    prompts = [f"{with_article(c)} {s} on {with_article(b)} background" for s, c, b in wanted]
    pictures = generate(pipeline, prompts, options.guidance, seed=1000, batch=20)
    verdicts = [judge(PICTURE_SIZE, PICTURE_SIZE, picture.tobytes()) for picture in pictures]
    for prompt, (s, c, b), v in zip(prompts, wanted, verdicts):
        if (v.shape, v.colour, v.background) != (s, c, b):
            print(f"  {prompt}: {v.colour} {v.shape} on {v.background}")
    print(f"background: {sum(v.background == w[2] for v, w in zip(verdicts, wanted))} of {len(wanted)}")
    print(f"colour: {sum(v.colour == w[1] for v, w in zip(verdicts, wanted))} of {len(wanted)}")
    print(f"shape: {sum(v.shape == w[0] for v, w in zip(verdicts, wanted))} of {len(wanted)}")
    print(f"mean overlap with the template: {np.mean([v.overlap for v in verdicts]):.2f}")


def pixels_of(picture, colour):
    """Rows and columns [n, 2] of the pixels nearest to a colour."""
    palette = np.array(list(COLOURS.values()), np.float32)
    nearest = ((picture.reshape(-1, 1, 3) - palette) ** 2).sum(-1).argmin(1)
    return np.argwhere(nearest.reshape(picture.shape[:2]) == COLOUR_NAMES.index(colour))


def evaluate_arrangements(pipeline, options):
    """Counts, places and relations, by colour and position; shapes are not judged here."""
    rng = np.random.default_rng(99)

    def some_colours(count):
        return [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))[:count]]

    def counted(picture, colour, count):
        return count_regions(PICTURE_SIZE, PICTURE_SIZE, picture.tobytes(), colour) == count

    def placed(picture, colour, place):
        found = pixels_of(picture, colour)
        distance = np.abs((found.mean(0) + 0.5) / PICTURE_SIZE - np.array(place)[::-1]) if len(found) >= 12 else None
        return distance is not None and bool((distance < 0.12).all())

    def related(picture, colour, other, relation):
        a, b = pixels_of(picture, colour), pixels_of(picture, other)
        if len(a) < 25 or len(b) < 25:
            return False
        shift = (a.mean(0) - b.mean(0))[0 if relation in ("above", "below") else 1]
        return shift < -0.15 * PICTURE_SIZE if relation in ("above", "left") else shift > 0.15 * PICTURE_SIZE

    cases = {"two": [], "three": [], "places": [], "above, below": [], "left, right": []}
    for trial in range(24):
        shape, other = SHAPES[trial % len(SHAPES)], choice(rng, SHAPES)
        for word, count in (("two", 2), ("three", 3)):
            c, b = some_colours(2)
            cases[word].append((f"{word} {c} {plural(shape)} on {with_article(b)} background", counted, (c, count)))
        c, b = some_colours(2)
        place = list(PLACES)[trial % len(PLACES)]
        cases["places"].append(
            (f"a small {c} {shape} {place} on {with_article(b)} background", placed, (c, PLACES[place]))
        )
        for key, words in (("above, below", ("above", "below")), ("left, right", ("left", "right"))):
            c, d, b = some_colours(3)
            relation = words[trial % 2]
            between = relation if key == "above, below" else f"to the {relation} of"
            prompt = f"{with_article(c)} {shape} {between} {with_article(d)} {other} on {with_article(b)} background"
            cases[key].append((prompt, related, (c, d, relation)))
    for name, items in cases.items():
        pictures = generate(pipeline, [prompt for prompt, _, _ in items], options.guidance, seed=5000, batch=20)
        right = sum(bool(check(picture, *wanted)) for picture, (_, check, wanted) in zip(pictures, items))
        print(f"{name}: {right} of {len(items)}")


SHEET_PROMPTS = [
    "a red circle on a blue background",
    "two green squares on a white background",
    "a small yellow triangle above a large purple square",
    "a white star on a black background",
    "a pink heart on a cyan background",
    "a large orange ring on a purple background",
    "a green cross on a yellow background",
    "a cyan diamond on a red background",
    "three blue circles on a yellow background",
    "a red heart",
    "a small white circle on the left on a green background",
    "a yellow star in the top right corner on a black background",
    "a red square to the left of a blue circle on a white background",
    "a green triangle below a pink star on a black background",
    "a black heart on a gradient from yellow to red",
    "a white circle on a striped red and blue background",
    "two purple stars on a pink background",
    "three white hearts on red",
    "a drawing of a big blue star on an orange background",
    "black ring, white background",
    "an orange triangle and a cyan square on a black background",
    "a large green diamond on a pink background",
    "a purple cross at the bottom on a white background",
    "",
]


def make_sheet(options):
    """A contact sheet of 24 prompts with their captions, in --work."""
    pictures = generate(load_pipeline(options), SHEET_PROMPTS, options.guidance, seed=7, batch=12)
    size, gap, caption_height, line_height, columns = 160, 8, 34, 11, 6
    rows = math.ceil(len(pictures) / columns)
    sheet_size = (columns * (size + gap) + gap, rows * (size + caption_height + gap) + gap)
    sheet = Image.new("RGB", sheet_size, (235, 235, 235))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, (prompt, picture) in enumerate(zip(SHEET_PROMPTS, pictures)):
        x = gap + (number % columns) * (size + gap)
        y = gap + (number // columns) * (size + caption_height + gap)
        sheet.paste(Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST), (x, y))
        lines = [""]
        for word in (prompt or "(empty prompt)").split():
            if draw.textlength(f"{lines[-1]} {word}", font=font) > size:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        for index, line in enumerate(lines[:3]):
            draw.text((x, y + size + 1 + line_height * index), line, fill=(0, 0, 0), font=font)
    path = options.work / "sheet.png"
    sheet.save(path)
    print(path)


STAGES = {
    "tokenizer": make_tokenizer,
    "vae": train_vae,
    "latents": make_latents,
    "decoder": train_decoder,
    "unet": train_unet,
    "export": export,
    "evaluate": evaluate,
    "sheet": make_sheet,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("out/training"), help="where stages leave their results")
    parser.add_argument("--model", type=Path, default=Path("out/training/model"), help="the diffusers folder")
    parser.add_argument("--minutes", type=float, default=10, help="how long to train")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.4, help="last part of the time in which the rate falls to 0")
    parser.add_argument("--batch", type=int, default=32, help="pictures per UNet step")
    parser.add_argument("--count", type=int, default=25000, help="pictures to encode")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="go on with the UNet in --work")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2, help="one where two processes share two cores")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    STAGES[options.stage](options)


if __name__ == "__main__":
    main()
