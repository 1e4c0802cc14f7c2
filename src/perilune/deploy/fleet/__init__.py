"""Many engines from one file: where each runs, what starts it, and keeping them running behind one router.

Never: measuring hosts, or deciding how an engine is configured; the file says both.
"""
