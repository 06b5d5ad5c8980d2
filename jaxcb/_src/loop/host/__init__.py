"""What runs on the host: dispatching programs, performing records, signals, host metrics."""
