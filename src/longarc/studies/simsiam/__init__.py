"""Study: why SimSiam does not collapse, what makes it, and whether the mean view would do."""
