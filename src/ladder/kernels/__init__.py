"""Small C kernels for the processor's hot paths, compiled on first use; everything they do, torch can do slower."""
