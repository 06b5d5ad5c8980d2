"""The laws of callbacks, as property tests."""
