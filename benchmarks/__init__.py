"""What is claimed about speed: each figure a ratio, or a bound, inside one run. ``make bench``."""
