"""The methods that MetAug is compared with, each in its own file."""
