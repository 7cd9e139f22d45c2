"""Everything in a notebook that answers the mouse and the keyboard, under one name: the explorers and runs watched live.

Each is a function that returns what a cell shows, and has a twin that returns the plain figure.
"""

from metaug_workbook.widgets.augmentation import augmentation_figure as augmentation_figure
from metaug_workbook.widgets.augmentation import augmentation_viewer as augmentation_viewer
from metaug_workbook.widgets.live import LiveView as LiveView
from metaug_workbook.widgets.margins import margin_explorer as margin_explorer
from metaug_workbook.widgets.margins import margin_figure as margin_figure
from metaug_workbook.widgets.meta_step import meta_step_figure as meta_step_figure
from metaug_workbook.widgets.meta_step import meta_step_stepper as meta_step_stepper
from metaug_workbook.widgets.oucl import oucl_explorer as oucl_explorer
from metaug_workbook.widgets.oucl import oucl_figure as oucl_figure
from metaug_workbook.widgets.run_browser import run_browser as run_browser
from metaug_workbook.widgets.run_browser import runs_figure as runs_figure
from metaug_workbook.widgets.run_monitor import monitor_figure as monitor_figure
from metaug_workbook.widgets.run_monitor import run_monitor as run_monitor
