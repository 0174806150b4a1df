"""`python -m sparsegen` is the command line, as `sparsegen` is."""

from sparsegen.cli.app import main

if __name__ == "__main__":
    main()
