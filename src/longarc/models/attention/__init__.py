"""Attention whose cost grows with a document's length, not its square; one kernel a file."""
