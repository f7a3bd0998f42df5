"""A learning rate with reasons: a range that is measured, and candidates that are tried."""
