"""The command `metaug`."""
