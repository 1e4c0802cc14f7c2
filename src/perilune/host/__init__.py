"""What this machine is and how it is set up: read-only probes, rules over them, fixes as text, profiles of devices.

Never: changing the host, importing torch.
"""
