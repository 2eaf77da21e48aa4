"""LENI and Reborn: rebuild what ReLU discards from the negative part."""
