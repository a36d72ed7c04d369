"""What an energy-based model is and how one samples it: tensors in, tensors out, randomness as an argument."""
