"""Views -> h -> z -> z~, and what is remembered of them."""
