"""What is measured of LENI."""
