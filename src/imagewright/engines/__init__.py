"""Engines make pictures: each turns an adapted `ImageRequest` into PIL images."""
