"""Study: a trained network as a kernel machine over its training set, and how far that carries."""
