"""What reads images from folders, arrays and TFDS."""
