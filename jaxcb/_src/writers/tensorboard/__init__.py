"""TensorBoard's event files and projector files."""
