"""What is done with models and their numbers: comparisons, later tests, exports and reports."""
