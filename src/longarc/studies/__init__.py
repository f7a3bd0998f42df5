"""Published claims, a folder or a file each: run it, draw it, compare it."""
