#!/usr/bin/env python3
"""Draws the pictures of the README with the demo model and puts them on one sheet.

    python3 -m venv .venv && .venv/bin/pip install pillow
    .venv/bin/python scripts/contact-sheet.py [--binary .build/release/diffused] [--output doc/images/demo.png]
"""

import argparse
import pathlib
import subprocess
import tempfile

from PIL import Image, ImageDraw, ImageFont

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPTS = [
    "a red circle on a blue background",
    "a white star on a black background",
    "a pink heart on a cyan background",
    "a large orange ring on a purple background",
    "a green cross on a yellow background",
    "three blue circles on a yellow background",
    "a yellow star in the top right corner on a black background",
    "a cyan diamond on a red background",
]
COLUMNS, SIDE, GAP, CAPTION = 4, 192, 12, 40


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / ".build/release/diffused")
    parser.add_argument("--output", default=ROOT / "doc/images/demo.png")
    arguments = parser.parse_args()

    rows = -(-len(PROMPTS) // COLUMNS)
    size = (GAP + COLUMNS * (SIDE + GAP), GAP + rows * (SIDE + CAPTION))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    with tempfile.TemporaryDirectory() as folder:
        for index, prompt in enumerate(PROMPTS):
            file = pathlib.Path(folder, f"{index}.png")
            command = [arguments.binary, "generate", "--config", ROOT / "config.yaml", "--prompt", prompt]
            command += ["--seed", "1", "--steps", "25", "--scale", "5", "--output", file]
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
            x = GAP + index % COLUMNS * (SIDE + GAP)
            y = GAP + index // COLUMNS * (SIDE + CAPTION)
            sheet.paste(Image.open(file).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
            words, lines = prompt.split(), [""]
            for word in words:
                if draw.textlength(f"{lines[-1]} {word}", font=font) > SIDE:
                    lines.append("")
                lines[-1] = f"{lines[-1]} {word}".strip()
            draw.multiline_text((x, y + SIDE + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    sheet.save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
