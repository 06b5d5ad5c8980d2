"""The data pipeline: from the user's data to batches on the devices."""
