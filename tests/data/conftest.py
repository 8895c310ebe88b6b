"""The sticker fixtures, for every test of the data side."""

from sticker_fixtures import small_set, tarballs

__all__ = ["small_set", "tarballs"]
