"""The training job and everything it writes."""
