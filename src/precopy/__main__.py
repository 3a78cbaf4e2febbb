"""``python -m precopy``."""

from precopy.cli.main import main

main()
