"""The host side of the loop: dispatch, actions on records, signals, host metrics."""
