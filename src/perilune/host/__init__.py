"""What this machine is and how it is set up: read-only probes.

Never: changing the host, importing torch.
"""
