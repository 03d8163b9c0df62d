"""Files that are whole or absent, images, and sharing work between processes."""
