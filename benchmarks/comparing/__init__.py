"""Two commits beside one another: their builds, a process of each, and turns between the two."""
