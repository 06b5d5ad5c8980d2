"""The stages of a stream, from the batches of a source to chunks on the devices; one stage per module."""
