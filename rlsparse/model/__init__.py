"""The policy: loading, log-probabilities, and the fast paths through the modules of a model."""
