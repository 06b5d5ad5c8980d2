"""`python -m jaxcb`: the command line."""

from jaxcb._src.cli.main import main

if __name__ == "__main__":
    main()
