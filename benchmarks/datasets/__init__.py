"""The papers' data sets, from files that are there: nothing is downloaded."""
