"""Fixed prompts and the sheets that show what a model makes of them."""
