"""Recipes for rare classes around the training: what is drawn, what is done to the head after."""
