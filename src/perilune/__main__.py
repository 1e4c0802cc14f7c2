"""`python -m perilune` is the `perilune` command."""

from perilune.cli.app import main

if __name__ == "__main__":
    main()
