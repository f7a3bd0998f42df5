"""Table to checked, labelled and split examples."""
