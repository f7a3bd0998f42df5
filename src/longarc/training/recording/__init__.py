"""Recording a training so that it can be replayed: what explanations are computed from."""
