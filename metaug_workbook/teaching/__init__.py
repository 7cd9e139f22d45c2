"""Small examples that the walkthrough and its widgets compute live."""
