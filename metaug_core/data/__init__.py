"""Files and arrays -> uint8 images and labels."""
