"""Study: every loss for long-tailed labels is cross-entropy with its gradient re-weighted."""
