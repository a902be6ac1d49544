"""`python -m ornstein`, the same as the command `ornstein`."""

from ornstein.cli import main

if __name__ == "__main__":
    main()
