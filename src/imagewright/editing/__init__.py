"""Editing pictures: masks, the guarantee that nothing else changes, larger canvases, and stacks of edits."""
