"""What every mechanism needs."""
