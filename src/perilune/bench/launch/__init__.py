"""A server for the points that share it: which program, which port, which log; `deploy` runs and ends it."""
