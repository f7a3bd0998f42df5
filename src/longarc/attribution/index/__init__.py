"""The indexed mode: projected gradients on the disk, a matrix product for a query."""
