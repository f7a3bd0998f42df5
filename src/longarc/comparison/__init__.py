"""Several encoders, attentions, lengths or losses trained and measured under one budget."""
