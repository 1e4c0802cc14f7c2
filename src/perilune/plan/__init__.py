"""Will it fit, and how fast: memory and roofline arithmetic over a spec, a cache geometry and numbers about the host.

Never: probing a machine, opening a checkpoint, importing torch. Callers pass measured numbers in.
"""
