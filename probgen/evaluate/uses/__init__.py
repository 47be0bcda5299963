"""What a density is good for: filling gaps, adding rows, finding the odd ones and the cells to blame."""
