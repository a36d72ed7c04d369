"""A worker process: claims jobs, runs their chains, and leaves nothing behind that another worker could not pick up."""
