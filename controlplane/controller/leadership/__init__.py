"""Which of several controllers takes the requests. The others fold along, warm.

Leadership avoids contention; safety comes from the condition that every append carries.
"""
