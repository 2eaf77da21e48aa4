"""What is measured of LENI."""

ORDER = 0
