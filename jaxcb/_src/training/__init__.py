"""The training step: train state, loss, learning rate, probes, and the configuration of a run."""
