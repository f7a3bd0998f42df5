"""From a saved run to a page and a model card."""
