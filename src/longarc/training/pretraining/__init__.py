"""Self-supervised training of an encoder on texts without labels."""
