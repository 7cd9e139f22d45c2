"""Everything in a notebook that answers the mouse and the keyboard, under one name: the explorers and runs watched live.

Each is a function that returns what a cell shows, and has a twin that returns the plain figure.
"""

from metaug_core.live_view import LiveView as LiveView
from metaug_core.live_view import clock as clock
from metaug_core.live_view import curves as curves
from metaug_core.live_view import live as live
from metaug_core.oucl_explorer import oucl_explorer as oucl_explorer
from metaug_core.oucl_explorer import oucl_figure as oucl_figure
from metaug_core.margin_explorer import margin_explorer as margin_explorer
from metaug_core.margin_explorer import margin_figure as margin_figure
