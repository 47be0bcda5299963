"""``python -m probgen.cli``."""

from probgen.cli.commands import main

if __name__ == "__main__":
    main()
