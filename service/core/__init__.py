"""What the service decides: jobs, plans and the scheduler. Pure: no tensor, no clock, no I/O."""
