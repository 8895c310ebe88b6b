"""`python -m imagewright`: the command, where its script is not on the path."""

from imagewright.cli import main

if __name__ == "__main__":
    main()
