"""imagewright makes images from words and pictures, with every technique there is."""

__version__ = "0.1.0"
