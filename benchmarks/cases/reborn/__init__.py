"""What is measured of Reborn."""
