"""Loading the policy, its log-probabilities, and faster ways to compute them with the modules of the model."""
