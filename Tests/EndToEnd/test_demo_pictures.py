"""Looks at pictures of the demo model: colours, shapes and counts have to be what the prompt says."""

import unittest

from daemon import Daemon
from demo_shapes import count_regions, nearest_colour
from png import PNG
from shows import shows

# Colour, shape, background; each is right in the reference implementation with the seed below.
SINGLES = [
    ("red", "circle", "blue"),
    ("white", "star", "black"),
    ("pink", "heart", "cyan"),
    ("orange", "ring", "purple"),
    ("green", "cross", "yellow"),
    ("cyan", "diamond", "red"),
    ("yellow", "triangle", "green"),
    ("purple", "square", "white"),
    ("black", "heart", "orange"),
    ("blue", "star", "pink"),
]

COUNTS = [("two", 2, "green", "squares", "white"), ("three", 3, "blue", "circles", "yellow")]


class DemoPictures(unittest.TestCase):
    configuration = ""

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(cls.configuration)
        cls.daemon.start()
        cls.addClassCleanup(cls.daemon.__exit__)
        cls.daemon.wait_until_ready()

    def picture(self, prompt):
        answer = self.daemon.generate(prompt, steps=25, scale=5, seed=7)
        self.assertEqual(answer.status, 200, answer.body)
        return PNG(self.daemon.get(f"/download/{answer.json['download_id']}").body)

    def test_single_shapes(self):
        for colour, shape, background in SINGLES:
            article = "an" if colour[0] in "aeiou" else "a"
            prompt = f"{article} {colour} {shape} on a {background} background"
            with self.subTest(prompt):
                right, found = shows(self.picture(prompt), colour, shape, background)
                self.assertTrue(right, found)

    def test_counts(self):
        for word, count, colour, shapes, background in COUNTS:
            with self.subTest(word):
                picture = self.picture(f"{word} {colour} {shapes} on a {background} background")
                self.assertEqual(count_regions(picture.width, picture.height, picture.pixels, colour), count)
                self.assertEqual(nearest_colour(picture.pixels[:3]), background)

    def test_negative_prompt_and_scale_matter(self):
        plain = self.daemon.generate("a red circle", steps=10, seed=7).json["download_id"]
        negative = self.daemon.generate("a red circle", steps=10, seed=7, negative_prompt="white").json["download_id"]
        pictures = [self.daemon.get(f"/download/{name}").body for name in (plain, negative)]
        self.assertNotEqual(PNG(pictures[0]).pixels, PNG(pictures[1]).pixels)


class DemoPicturesInFloat32(DemoPictures):
    configuration = "precision: float32\n"


if __name__ == "__main__":
    unittest.main()
