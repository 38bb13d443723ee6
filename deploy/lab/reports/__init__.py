"""What the lab shows and keeps: the report of its checks, and the directory of one run.

``report``         checks, tables and notes, for a person or as one JSON document
``run_directory``  state, lock and log files of a running lab
"""
