"""`python -m dreambooth`."""

from dreambooth.cli import main

if __name__ == "__main__":
    main()
