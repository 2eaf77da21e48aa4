"""What is measured of Reborn."""

ORDER = 2
