"""What notebooks, figures and the command line need on top of `metaug_core`."""
