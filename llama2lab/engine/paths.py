"""Where the library's own files lie, in a checkout and in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent  # of the checkout
DATA = PACKAGE / "_data" if (PACKAGE / "_data").is_dir() else ROOT / "data"  # a wheel brings its own copy
