"""The tuner's rooms: what is tuned, which tilings are worth a try, and which of them is the fastest on a GPU."""
