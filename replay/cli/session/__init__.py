"""What every replay command shares: the options, the opened log, the progress bar.

``options`` says where the log comes from and in which zone times are read; ``session`` opens it and reads
every WHEN; ``progress`` shows long work to a person. It answers no question and prints no table.
"""

from replay.cli.session.options import LogSource, SuggestingChoice, TimesAsArguments, at_option, source_options
from replay.cli.session.progress import progress
from replay.cli.session.session import Session, controllers_checkpoints, opened, pod_pages, pods_of

__all__ = [
    "LogSource",
    "Session",
    "SuggestingChoice",
    "TimesAsArguments",
    "at_option",
    "controllers_checkpoints",
    "opened",
    "pod_pages",
    "pods_of",
    "progress",
    "source_options",
]
