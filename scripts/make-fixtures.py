#!/usr/bin/env python3
"""Makes Tests/Fixtures: reference numbers of the Python libraries whose results diffused reproduces.

Run by hand when a fixture is added; the tests only read what it writes. Everything is deterministic, so a second run
changes nothing. The versions are part of the reference:

    python3 -m venv .venv
    .venv/bin/pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6 scipy==1.17.1 torchsde==0.2.6 pillow==13.0.0
    .venv/bin/python scripts/make-fixtures.py [schedulers] [samplers] [noise] [seeds] [tokenizer] [models] [sampled] [loras] [prompts] \\
        [single_files] [torch_files] [pictures] [png_files] [jpeg_files]
"""

import importlib
import sys
from pathlib import Path

PARTS = [
    "schedulers", "samplers", "noise", "seeds", "tokenizer", "models", "sampled", "loras", "prompts", "single_files", "torch_files",
    "pictures", "png_files", "jpeg_files",
]
VERSIONS = {
    "torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0", "numpy": "2.4.6", "scipy": "1.17.1",
    "torchsde": "0.2.6",
}


def main():
    parts = sys.argv[1:] or PARTS
    unknown = set(parts) - set(PARTS)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    for name, version in VERSIONS.items():
        found = importlib.import_module(name).__version__.split("+")[0]
        if found != version:
            sys.exit(f"{name} {found} is installed, but the fixtures are made with {version}")
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root / "scripts"))
    folder = root / "Tests" / "Fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        print(part, flush=True)
        importlib.import_module(f"fixtures.{part}").make(folder)


if __name__ == "__main__":
    main()
