"""Training of small models on the CPU: batches, losses, and a loop that resumes. Needs the extra
`train`."""
