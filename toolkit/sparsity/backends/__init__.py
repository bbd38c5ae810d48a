"""Pruning back ends, which select the weights to keep."""
