"""Hosted services: one file each for request -> wire and wire -> pictures; base.py has what they share."""
