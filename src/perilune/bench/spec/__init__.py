"""What a sweep file may say: typed models, conditions, and errors with file, line and nearest name.

Never expands, launches or measures anything.
"""
