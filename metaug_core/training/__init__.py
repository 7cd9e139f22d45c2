"""One step, the loop around it, and what the loop saves and reports."""
