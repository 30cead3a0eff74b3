"""What is submitted, one module a job, and what the command line needs around it."""
