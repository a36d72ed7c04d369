"""Where models meet requests: the model library, the evaluator and the batches of chains. Owns the device."""
