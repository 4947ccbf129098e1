"""Kernels for the hot paths: C for the CPU, compiled on first use, and Triton for CUDA. torch's operators compute the
same more slowly, and are the oracle in the tests."""
