#!/usr/bin/env python3
"""Makes Sources/StableDiffusion/Tokenizer/CanonicalCompositionData.swift: Unicode's canonical compositions.

Run by hand; needs the versions that scripts/make-fixtures.py names. The decompositions come from Python's unicodedata, restricted
to the characters that the reference tokenizer's normaliser knows.
"""

import textwrap
import unicodedata
from pathlib import Path

from tokenizers import normalizers

HEADER = """\
// Unicode's canonical decompositions, as far as the reference tokenizer knows them (Unicode 9). Made by
// scripts/make-unicode-table.py; Hangul syllables are computed instead.

/// Canonical decompositions as hexadecimal numbers.
enum CanonicalCompositionData {
"""


def literal(name, summary, groups):
    words = " ".join(" ".join(f"{number:X}" for number in group) for group in groups)
    lines = textwrap.wrap(words, 110)
    body = "".join(f"        {line} \\\n" for line in lines[:-1]) + f"        {lines[-1]}\n"
    return f'    /// {summary}\n    static let {name} = """\n{body}        """\n'


def main():
    decompose, compose = normalizers.NFD(), normalizers.NFC()
    compositions, exclusions, singletons = [], [], []
    for code in range(0x110000):
        character = chr(code)
        if 0xD800 <= code < 0xE000 or 0xAC00 <= code < 0xD7A4:
            continue
        decomposition = unicodedata.decomposition(character)
        if not decomposition or decomposition.startswith("<") or decompose.normalize_str(character) == character:
            continue
        group = [code] + [int(part, 16) for part in decomposition.split()]
        if compose.normalize_str(character) == character:
            compositions.append(group)
        elif len(group) == 3:
            exclusions.append(group)
        else:
            singletons.append(group)
    text = HEADER
    text += literal("compositions", "A character, and the two it is composed of.", compositions) + "\n"
    text += literal("exclusions", "A character, and the two it decomposes into for good.", exclusions) + "\n"
    text += literal("singletons", "A character, and the one it stands for.", singletons)
    root = Path(__file__).resolve().parent.parent
    (root / "Sources/StableDiffusion/Tokenizer/CanonicalCompositionData.swift").write_text(text + "}\n")


if __name__ == "__main__":
    main()
