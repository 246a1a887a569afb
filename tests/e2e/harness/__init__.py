"""What the end-to-end tests are written with: stacks, pods, and the state of the host around them."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "config" / "lib"))
