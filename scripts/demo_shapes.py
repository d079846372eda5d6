"""The world of the demo model: its colours, its shapes and a judge that says what a picture shows.

Used by train-demo-model.py, which draws this world, and by the end-to-end tests, which look at pictures of it. Only the
standard library is needed.
"""

import math
from dataclasses import dataclass
from functools import cache
from statistics import median

# Colours as drawn for training, sRGB.
COLOURS = {
    "red": (222, 40, 40),
    "green": (40, 165, 70),
    "blue": (40, 80, 222),
    "yellow": (250, 218, 50),
    "orange": (245, 132, 28),
    "purple": (130, 48, 175),
    "pink": (250, 145, 195),
    "cyan": (60, 208, 222),
    "black": (20, 20, 24),
    "white": (248, 248, 248),
}

SHAPES = ["circle", "square", "triangle", "star", "ring", "heart", "cross", "diamond"]

# Radii of circles and rings, in half-extents of the shape.
DISC_RADIUS = 0.96
RING_HOLE_RADIUS = 0.55


def plural(shape):
    """The plural of a shape's name."""
    return "crosses" if shape == "cross" else shape + "s"


def outline(shape):
    """The polygon of a shape in the box [-1, 1] x [-1, 1], y downwards; circle and ring have none."""
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0, -0.92), (1, 0.82), (-1, 0.82)]
    if shape == "diamond":
        return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
    if shape == "cross":
        arm, end = 0.34, 0.95
        return [
            (-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm),
            (arm, end), (-arm, end), (-arm, arm), (-end, arm), (-end, -arm), (-arm, -arm),
        ]  # fmt: skip
    if shape == "star":
        points = []
        for corner in range(10):
            radius = 1.05 if corner % 2 == 0 else 0.44
            angle = math.pi * corner / 5
            points.append((radius * math.sin(angle), 0.06 - radius * math.cos(angle)))
        return points
    if shape == "heart":
        points = []
        for step in range(60):
            angle = 2 * math.pi * step / 60
            x = 16 * math.sin(angle) ** 3
            y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
            points.append((x / 16.5, -(y + 2.5) / 16.5))
        return points
    raise ValueError(f"{shape} has no outline")


def covers(shape, x, y):
    """Whether a shape in the box [-1, 1] x [-1, 1] covers a point."""
    if shape in ("circle", "ring"):
        radius = math.hypot(x, y)
        return radius <= DISC_RADIUS and (shape == "circle" or radius >= RING_HOLE_RADIUS)
    # Even-odd rule: count the edges that a ray to the right crosses.
    inside = False
    points = outline(shape)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


@dataclass
class Verdict:
    """What a picture of one shape shows; colour and shape are None when nothing stands out from the background."""

    background: str
    colour: str | None
    shape: str | None
    # Soft intersection over union with the shape drawn perfectly, 0 to 1.
    overlap: float


def judge(width, height, pixels):
    """Says what a picture of one shape on a plain background shows.

    The nearest of the ten colours and the most similar of the eight shapes win, so a verdict means "recognisable", not
    "perfect".

    pixels: rows of RGB triples, width * height * 3 bytes.
    """
    rows = [[pixels[3 * (y * width + x) : 3 * (y * width + x) + 3] for x in range(width)] for y in range(height)]
    frame = max(2, min(width, height) // 16)
    border = [
        pixel
        for y, row in enumerate(rows)
        for x, pixel in enumerate(row)
        if y < frame or y >= height - frame or x < frame or x >= width - frame
    ]
    background = middle_colour(border)
    distances = [[math.dist(pixel, background) for pixel in row] for row in rows]
    # What stands out: most of the way to the colour that differs most, and visibly different at all.
    farthest = sorted(distance for row in distances for distance in row)[int(0.99 * (width * height - 1))]
    threshold = max(40, 0.6 * farthest)
    core = [rows[y][x] for y in range(height) for x in range(width) if distances[y][x] > threshold]
    if len(core) < 12:
        return Verdict(nearest_colour(background), None, None, 0.0)
    foreground = middle_colour(core)

    # Coverage of each pixel: where it lies on the line from background to foreground colour.
    direction = [f - b for f, b in zip(foreground, background)]
    length = sum(d * d for d in direction)
    coverage = [
        [min(1, max(0, sum((p - b) * d for p, b, d in zip(pixel, background, direction)) / length)) for pixel in row]
        for row in rows
    ]
    mask = normalised(coverage)
    if mask is None:
        return Verdict(nearest_colour(background), nearest_colour(foreground), None, 0.0)
    overlap, shape = max((soft_overlap(mask, template), shape) for shape in SHAPES for template in templates(shape))
    return Verdict(nearest_colour(background), nearest_colour(foreground), shape, overlap)


def nearest_colour(rgb):
    """The name of the colour nearest to an RGB triple."""
    return min(COLOURS, key=lambda name: math.dist(COLOURS[name], rgb))


def count_regions(width, height, pixels, colour, least=12):
    """How many connected regions (4 neighbours) of at least `least` pixels are nearest to a colour."""
    remaining = {
        (x, y)
        for y in range(height)
        for x in range(width)
        if nearest_colour(pixels[3 * (y * width + x) : 3 * (y * width + x) + 3]) == colour
    }
    regions = 0
    while remaining:
        pending, size = [remaining.pop()], 0
        while pending:
            x, y = pending.pop()
            size += 1
            for neighbour in ((x, y - 1), (x, y + 1), (x - 1, y), (x + 1, y)):
                if neighbour in remaining:
                    remaining.remove(neighbour)
                    pending.append(neighbour)
        regions += size >= least
    return regions


def middle_colour(pixels):
    """The median of each channel."""
    return tuple(median(channel) for channel in zip(*pixels))


# Edge length of the square masks that are compared.
MASK_SIZE = 32


def normalised(coverage):
    """A coverage map cropped to the shape's bounding box and scaled so that the longer side fills MASK_SIZE."""
    ys = [y for y, row in enumerate(coverage) if max(row) > 0.5]
    xs = [x for x, column in enumerate(zip(*coverage)) if max(column) > 0.5]
    if sum(value > 0.5 for row in coverage for value in row) < 12:
        return None
    left, top, width, height = xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1
    side = max(width, height)
    left -= (side - width) / 2
    top -= (side - height) / 2
    crop = (xs[0], ys[0], xs[-1], ys[-1])
    return [
        [
            sample(coverage, crop, left + side * (x + 0.5) / MASK_SIZE, top + side * (y + 0.5) / MASK_SIZE)
            for x in range(MASK_SIZE)
        ]
        for y in range(MASK_SIZE)
    ]


def sample(coverage, crop, x, y):
    """Bilinear interpolation at pixel coordinates (centres at .5); nothing lies outside the crop."""
    x, y = x - 0.5, y - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    total = 0.0
    for px, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
        for py, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
            if crop[0] <= px <= crop[2] and crop[1] <= py <= crop[3]:
                total += wx * wy * coverage[py][px]
    return total


@cache
def templates(shape):
    """The normalised masks of a perfectly drawn shape, at three sizes: a small one has softer corners."""
    return [normalised(drawn(shape, radius)) for radius in (0.15, 0.25, 0.35)]


def drawn(shape, radius, size=64, supersampling=4):
    """Coverage of each pixel of a picture with one shape in its middle; radius in fractions of the picture."""
    fine = size * supersampling
    points = [((i + 0.5) / fine - 0.5) / radius for i in range(fine)]
    # The box of the shape, with room for what reaches beyond it (the tips of the star).
    near = [abs(point) < 1.2 for point in points]
    samples = [[near[i] and near[j] and covers(shape, points[i], points[j]) for i in range(fine)] for j in range(fine)]
    steps = range(0, fine, supersampling)
    return [
        [
            sum(sum(row[x : x + supersampling]) for row in samples[y : y + supersampling]) / supersampling**2
            for x in steps
        ]
        for y in steps
    ]


def soft_overlap(a, b):
    """Soft intersection over union of two masks."""
    pairs = [(p, q) for row_a, row_b in zip(a, b) for p, q in zip(row_a, row_b)]
    return sum(min(pair) for pair in pairs) / sum(max(pair) for pair in pairs)
