"""What every Triton kernel needs."""
