"""What the commands do, once their words are read. Everything here is also a few lines of the Python API."""
