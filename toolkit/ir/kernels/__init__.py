"""The native sparse kernels: build and C interface."""
