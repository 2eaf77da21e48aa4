"""What is measured: a folder for each mechanism, the same files in each."""
