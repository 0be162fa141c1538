"""`python -m tosa_cli` is `tosa`."""

from tosa_cli.cli.app import main

if __name__ == "__main__":
    main()
