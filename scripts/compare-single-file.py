#!/usr/bin/env python3
"""Converts a diffusers folder to a single file in the original naming, draws with both, and compares the pictures byte for byte.

    python3 scripts/compare-single-file.py [--ckpt] [--binary FILE] FOLDER

For folders of Stable Diffusion 1.x and XL such as scripts/random_model.py makes. Which tensor goes where is found by letting diffusers
convert a small file of the same structure back (scripts/fixtures/single_files.py); diffused's own tables have no part in it.
Needs the packages of scripts/make-fixtures.py, twice the folder's size of memory and once of disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fixtures import single_files  # noqa: E402


def structure(folder):
    """A small model with the blocks of the one in the folder."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    vae_levels = len(vae["block_out_channels"])

    def small(channels):
        """Widths that differ where the real ones do, as only then a block has a shortcut."""
        order = sorted(set(channels))
        return [64 * (1 + order.index(width)) for width in channels]

    parts = {
        "vae": single_files.vae_config(
            block_out_channels=small(vae["block_out_channels"]), layers_per_block=vae["layers_per_block"],
            down_block_types=["DownEncoderBlock2D"] * vae_levels, up_block_types=["UpDecoderBlock2D"] * vae_levels,
        ),
    }
    second = folder / "text_encoder_2" / "config.json"
    if second.exists():
        family = next(family for family in single_files.families() if family["name"] == "sdxl")
        depths = unet["transformer_layers_per_block"]
        attends = [kind.startswith("CrossAttn") for kind in unet["down_block_types"]]
        family["depths"] = [depth if is_cross else 0 for depth, is_cross in zip(depths, attends)]
        family["unet"] |= {
            "block_out_channels": small(unet["block_out_channels"]), "layers_per_block": unet["layers_per_block"],
            "attention_head_dim": [1 + index for index in range(len(depths))], "transformer_layers_per_block": depths,
            "down_block_types": unet["down_block_types"], "up_block_types": unet["up_block_types"],
        }
        for name in ("text_encoder", "text_encoder_2"):
            layers = json.loads((folder / name / "config.json").read_text())["num_hidden_layers"]
            family["text"][name]["config"]["num_hidden_layers"] = layers
        return family | parts
    return parts | {
        "name": "sd1", "depths": [int(kind.startswith("CrossAttn")) for kind in unet["down_block_types"]],
        "unet": {
            "in_channels": unet.get("in_channels", 4), "out_channels": 4, "sample_size": 64, "cross_attention_dim": 64,
            "block_out_channels": small(unet["block_out_channels"]), "layers_per_block": unet.get("layers_per_block", 2),
            "attention_head_dim": 8, "down_block_types": unet["down_block_types"],
            "up_block_types": unet["up_block_types"],
        } | ({"mid_block_type": None} if unet.get("mid_block_type", "") is None else {}),
        "text": {
            "text_encoder": {
                "kind": "clip", "prefix": "cond_stage_model.transformer.",
                "config": single_files.text_config(64, text["num_hidden_layers"], "quick_gelu"),
            },
        },
    }


def component(folder, name):
    """The tensors of a part under the names that diffusers' converter gives."""
    tensors = {}
    for file in sorted((folder / name).glob("*.safetensors")):
        tensors |= load_file(file)
    if name.startswith("text_encoder"):
        return {key.removeprefix("text_model."): value for key, value in tensors.items()}
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return {".".join(old.get(part, part) for part in key.split(".")): value for key, value in tensors.items()}


def converted(folder):
    described = single_files.single_file(structure(folder))
    names, shapes = list(described["shapes"]), list(described["shapes"].values())
    result, parts = {}, {}
    for name, mapping in described["components"].items():
        tensors = component(folder, name)
        for key, source in mapping.items():
            # transformers keeps the part below this name in models without a projection.
            value = tensors.get(key, tensors.get(key.removeprefix("text_model.")))
            if value is None:
                sys.exit(f"{folder}/{name} has no {key}")
            if isinstance(source, list) and len(source) == 3:
                # One of several that are one in the file.
                parts.setdefault(source[0], {})[source[1]] = value
                continue
            if isinstance(source, list):
                source, value = source[0], value.T
            # What is a linear layer in diffusers can be a 1x1 convolution in the file.
            if len(shapes[source]) == 4 and value.dim() == 2:
                value = value[:, :, None, None]
            result[names[source]] = value.contiguous()
    for source, values in parts.items():
        result[names[source]] = torch.cat([values[index] for index in range(len(values))])
    return result


def draw(binary, model, output):
    subprocess.run(
        [binary, "generate", "--model", model, "--prompt", "a lighthouse at dawn", "--negative-prompt", "blurry", "--seed", "7",
         "--steps", "2", "--width", "64", "--height", "64", "--output", output],
        check=True, cwd=ROOT,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ckpt", action="store_true", help="write PyTorch's format instead of safetensors")
    parser.add_argument("--binary", default=str(ROOT / ".build" / "release" / "diffused"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tensors = converted(arguments.folder)
        if arguments.ckpt:
            file = Path(directory) / "model.ckpt"
            torch.save({"state_dict": tensors, "global_step": 1}, file)
        else:
            file = Path(directory) / "model.safetensors"
            save_file(tensors, file)
        del tensors
        print(f"{file.name}: {file.stat().st_size / 2**30:.2f} GiB", flush=True)
        subprocess.run([arguments.binary, "inspect", file], check=True)
        pictures = [Path(directory) / f"{kind}.png" for kind in ("folder", "file")]
        draw(arguments.binary, arguments.folder, pictures[0])
        draw(arguments.binary, file, pictures[1])
        # The text chunk names the model; the pixels are all else.
        chunks = [[c for c in read_chunks(picture) if c[0] != b"tEXt" and c[0] != b"iTXt"] for picture in pictures]
        if chunks[0] != chunks[1]:
            sys.exit("the pictures differ")
        print("the pictures are the same")


def read_chunks(path):
    """Kinds and contents of a PNG's chunks."""
    data, position, chunks = path.read_bytes(), 8, []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += length + 12
    return chunks


if __name__ == "__main__":
    main()
