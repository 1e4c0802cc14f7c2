"""A server as a child process: its own process group, a free port, readiness, why it failed, and its end in every case.

Never touches a process it did not start.
"""
