"""Study: residual attention (RealFormer) beside PostLN, PreLN and ReZero, from scratch."""
