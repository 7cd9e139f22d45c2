"""The notebooks as static pages."""
