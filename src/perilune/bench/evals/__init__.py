"""Is the answer right, asked at the load the speed was measured at.

Never counts a question that failed as one not asked: no answer is a wrong answer.
"""
