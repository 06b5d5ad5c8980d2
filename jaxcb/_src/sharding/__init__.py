"""Where arrays lie: on one device, or over a mesh."""
