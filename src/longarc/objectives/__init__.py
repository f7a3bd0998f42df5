"""What a model is trained towards: losses on its logits."""
