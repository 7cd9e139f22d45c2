"""Images -> views."""
