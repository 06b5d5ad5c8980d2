"""Actions: the values that a callback returns to change, log or act on the run."""
