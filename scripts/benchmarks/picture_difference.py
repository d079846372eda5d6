#!/usr/bin/env python3
"""Says by how much two pictures differ: picture_difference.py EXPECTED.png FOUND.png. Fails beyond a mean of 3/255.

The bound is the one that compare-with-diffusers.py has for float16. Standard library only.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "Tests/EndToEnd"))

from png import PNG  # noqa: E402

BOUND = 3.0


def main():
    expected, found = (PNG(pathlib.Path(path).read_bytes()) for path in sys.argv[1:3])
    if (expected.width, expected.height) != (found.width, found.height):
        sys.exit(f"{sys.argv[2]}: {found.width}x{found.height} instead of {expected.width}x{expected.height}")
    differences = [abs(a - b) for a, b in zip(expected.pixels, found.pixels)]
    mean = sum(differences) / len(differences)
    print(f"{pathlib.Path(sys.argv[2]).name}: mean difference {mean:.4f}, largest {max(differences)} of 255 (bound on the mean {BOUND})")
    sys.exit(mean > BOUND)


if __name__ == "__main__":
    main()
