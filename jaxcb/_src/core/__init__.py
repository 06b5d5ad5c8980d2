"""The algebra: metrics, callbacks, their composition, and actions."""
