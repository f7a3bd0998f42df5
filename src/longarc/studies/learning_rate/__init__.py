"""Study: a finite learning rate penalises the gradient; what that is worth, and what else does."""
