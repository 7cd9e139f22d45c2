"""`python -m metaug_workbook`: the command `metaug`."""

from metaug_workbook.cli import start

start()
