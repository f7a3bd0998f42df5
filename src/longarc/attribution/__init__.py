"""From a recorded training path to the training examples behind a prediction."""
