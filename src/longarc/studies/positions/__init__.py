"""Study: trained positions, decomposed into a coarse and a fine index, serve longer texts."""
