"""From what a user gives as data to batches on the device."""
