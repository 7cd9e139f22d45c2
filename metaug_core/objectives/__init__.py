"""z -> similarities -> losses and margins."""
