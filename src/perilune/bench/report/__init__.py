"""Results as one HTML file: charts drawn here as SVG, no script, nothing loaded from anywhere.

Never measures and never judges; it shows what the store holds, failed runs too.
"""
