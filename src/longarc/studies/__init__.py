"""Published claims, one a file: run it, draw it, compare it."""
