"""What a traced step tells of a model: parameters, floating-point operations, its graph."""
