"""Will it fit, and how fast: memory and roofline arithmetic over a spec, a cache geometry and numbers about the host.

Never: probing a machine (callers pass measured numbers in), reading a weight, importing torch.
"""
