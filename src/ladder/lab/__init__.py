"""The lab: claims about the techniques, each an experiment with a measured verdict."""
