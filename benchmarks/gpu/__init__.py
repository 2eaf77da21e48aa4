"""What ``gpu_check.py`` runs: each step lists its cases as data and says what one case does."""
