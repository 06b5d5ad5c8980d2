"""What belongs to no concept of training: errors, checks of arguments, pytrees, paths."""
