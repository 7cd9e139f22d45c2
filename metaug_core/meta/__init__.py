"""Loss -> look-ahead -> gradient of the MAG."""
