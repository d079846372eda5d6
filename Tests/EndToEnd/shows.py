"""Checks that a picture of the demo model shows what was asked for.

usage: python3 Tests/EndToEnd/shows.py PICTURE.png COLOUR SHAPE BACKGROUND
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from demo_shapes import judge  # noqa: E402
from png import PNG  # noqa: E402


def shows(picture, colour, shape, background):
    """Whether a decoded picture shows one shape of a colour on a background, and what it does show in words."""
    verdict = judge(picture.width, picture.height, picture.pixels)
    found = f"{verdict.colour} {verdict.shape} on {verdict.background} (overlap {verdict.overlap:.2f})"
    return (verdict.colour, verdict.shape, verdict.background) == (colour, shape, background), found


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    picture = PNG(Path(sys.argv[1]).read_bytes())
    right, found = shows(picture, *sys.argv[2:])
    print(f"    the picture shows: {found}")
    sys.exit(0 if right else 1)
