"""One loop that trains every technique."""
